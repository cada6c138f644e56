"""Tests that the reference system names: several real processes, started as a user starts them."""
