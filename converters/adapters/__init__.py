"""Adapter formats: one file or folder a format, and the table by which they are loaded."""
