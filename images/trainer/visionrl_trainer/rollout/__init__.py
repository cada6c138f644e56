"""Rollouts: requests to the task app, and training samples from its answers."""
