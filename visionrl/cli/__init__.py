"""The `visionrl` command."""
