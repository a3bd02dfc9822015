"""The system-call surface: what every caller, from whatever side, can ask of a node."""
