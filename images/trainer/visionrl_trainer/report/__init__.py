"""For people: progress, curves, replays, the report."""
