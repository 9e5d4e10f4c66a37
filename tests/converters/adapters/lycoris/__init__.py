"""Tests of converters/adapters/lycoris."""
