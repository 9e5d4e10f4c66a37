"""The seven laws of DESIGN.md."""
