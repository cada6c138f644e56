"""Rollouts: what is asked of the task app, and how its answers become samples."""
