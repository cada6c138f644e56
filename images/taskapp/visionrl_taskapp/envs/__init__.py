"""Environments: what is played."""
