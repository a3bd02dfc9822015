"""Scheduling: which tasks of a model hold its sequences, and what one quantum does."""
