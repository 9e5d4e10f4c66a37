"""Tests of jaxmix.placement."""
