"""Layouts of params trees: rules, named layouts, and the model libraries' tables."""

from jaxmix.placement.layout import (
    FLAX,
    KERNEL,
    LAYOUTS,
    NAMES,
    TORCH,
    Layout,
    Part,
    Place,
    Rule,
    Scale,
    libraries,
    named,
)
from jaxmix.placement.naming import map_named

__all__ = [
    "FLAX",
    "KERNEL",
    "LAYOUTS",
    "NAMES",
    "TORCH",
    "Layout",
    "Part",
    "Place",
    "Rule",
    "Scale",
    "libraries",
    "map_named",
    "named",
]
