"""The state of a run on disk: ownership, checkpoints, versions, metrics."""
