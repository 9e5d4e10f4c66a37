"""Tests of converters/names."""
