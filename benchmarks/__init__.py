"""Benchmarks: each prints what it measured on, how, and ratios beside its peer or its goal."""
