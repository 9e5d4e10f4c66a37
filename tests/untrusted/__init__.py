"""Tests of jaxmix.untrusted."""
