"""The shell: what an operator types."""
