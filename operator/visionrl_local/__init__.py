"""The same decisions carried out as processes on this machine."""
