"""Tests of converters/files."""
