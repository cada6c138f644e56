"""What holds for every test."""

from __future__ import annotations

import os

# Before torch is imported: threads that spin while they wait for a core starve the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
