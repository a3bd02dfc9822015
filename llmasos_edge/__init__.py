"""LLMasOS Edge: an operating system for language models on small ARM boards."""

__version__ = "0.1.0"
