"""The decision process of one snapshot: its state, its steps, and what a policy sees of it."""
