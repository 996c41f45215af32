"""Documents, records and folders on disk, and refusals: NumPy and the standard library only."""
