"""Policies: their prompts, their responses, and the client of the inference server."""
