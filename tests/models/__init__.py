"""Tests of jaxmix.models."""
