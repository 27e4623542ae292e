"""What uploads cost."""
