"""Copies of the trained policy outside of the run folder: on a claim, in an object store, on the hub."""
