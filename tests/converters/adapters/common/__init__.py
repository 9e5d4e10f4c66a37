"""Tests of converters/adapters/common."""
