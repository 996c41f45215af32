"""What each command takes and does, a file per command: `run(words, prog)` returns its status."""
