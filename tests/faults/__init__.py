"""Faults, enumerated: what is promised of a run holds whatever is killed or damaged, and whenever."""
