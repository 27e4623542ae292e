"""What a call costs, with each client."""
