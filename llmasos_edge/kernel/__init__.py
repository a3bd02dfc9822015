"""The kernel: it decides, and touches nothing; time is an argument, the world is behind hal."""
