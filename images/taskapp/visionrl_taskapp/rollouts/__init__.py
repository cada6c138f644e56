"""Rollouts: one episode from its first frame to its trajectory."""
