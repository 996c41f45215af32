"""Learning algorithms side by side: `python -m benchmarks.learners`, and the paper's own agent."""
