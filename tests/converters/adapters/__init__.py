"""Tests of converters/adapters."""
