"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported: threads that spin while they wait for a core starve the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example takes what the machine gives it: on a busy one, a limit in milliseconds fails what is right. Every run
# draws the same examples, so that a change fails for what it does; ``--hypothesis-profile=search`` draws others.
settings.register_profile("search", deadline=None)
settings.register_profile("visionrl", deadline=None, derandomize=True)
settings.load_profile("visionrl")
