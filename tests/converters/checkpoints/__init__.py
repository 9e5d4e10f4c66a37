"""Tests of converters/checkpoints."""
