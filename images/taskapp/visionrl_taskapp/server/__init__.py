"""The HTTP side of the task app."""
