"""One module a command: its description, its examples, its flags, and what it calls."""
