"""Supervised fine-tuning: imitation of recorded or scripted episodes."""
