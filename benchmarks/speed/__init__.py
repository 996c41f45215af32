"""How fast single functions are, and against another commit: `python -m benchmarks`."""
