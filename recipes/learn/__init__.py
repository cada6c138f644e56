"""The learning evidence as one command: ``python -m recipes.learn`` (docs/learning.md)."""
