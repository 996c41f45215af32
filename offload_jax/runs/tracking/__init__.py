"""Rows of metrics on disk, and their mirror at Weights & Biases."""
