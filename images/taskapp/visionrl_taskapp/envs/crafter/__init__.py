"""Crafter: deterministic, fast, and drawn as the stock game draws it."""
