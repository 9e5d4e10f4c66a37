"""Tests of jaxmix.apply."""
