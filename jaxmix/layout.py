"""Layouts of params trees: rules, the layouts that have a name, and the model libraries' tables."""

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
    "named",
]
