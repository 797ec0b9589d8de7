"""Where does it run? The command line and what stands behind each command."""
