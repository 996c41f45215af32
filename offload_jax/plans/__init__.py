"""What an assignment is worth: its outcome, its gains, and plans that can be executed."""
