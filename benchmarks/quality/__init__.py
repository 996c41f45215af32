"""How good methods and policies are: `python -m benchmarks.quality`, and generalisation."""
