"""Reads what others wrote: small files, JSON, paths and patterns, all within bounds."""
