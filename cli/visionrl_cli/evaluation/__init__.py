"""``visionrl eval``. Imported only when the command runs: it needs the operator's and the trainer's code."""
