"""Training runs: settings, run directories, checkpoints, rows of metrics, and the loop."""
