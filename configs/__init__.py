"""What is one experiment? One Python file each, only data."""
