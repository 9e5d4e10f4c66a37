"""Applies affine maps to the leaves of a params tree."""
