"""What people look at: progress, curves, replays, the report."""
