"""Adapters by name: vLLM asks for ``<job>-v000012-0a1b2c3d4e5f``, the trainer has it, this fetches it."""
