"""Saved mixes and recipes."""
