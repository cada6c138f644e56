"""The algorithms: advantages, losses, the update."""
