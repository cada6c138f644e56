"""The reference system's TOML files, read as this project's jobs and settings.

Pure functions from a file's tables to what they mean here. Every key is mapped, or noted where it means something else
here, or refused with the reason and what to write instead; nothing is dropped in silence.
"""
