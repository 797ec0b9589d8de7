"""What is the network? Modules, attention, families, decoding."""
