"""Benchmarks, opt-in: `python -m benchmarks --help`; benchmarks/README.md says how to read them."""
