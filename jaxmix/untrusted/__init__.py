"""Reads untrusted input with bounded cost: small files, JSON, paths and regular expressions."""
