"""Policies: who plays, what a model is told and shown, and how its answer is read."""
