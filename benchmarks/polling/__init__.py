"""What waiting costs, in virtual time."""
