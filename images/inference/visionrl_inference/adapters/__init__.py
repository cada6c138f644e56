"""Adapters by name: vLLM asks for ``<job>-v000012``, the trainer has it, this fetches it."""
