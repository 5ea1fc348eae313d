"""Forgetting: what a scope takes, the generation without it, and the proof that it is gone."""
