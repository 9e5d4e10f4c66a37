"""Layouts of params trees: rules, the layouts that have a name, and the model libraries' tables."""

from collections.abc import Mapping

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
    register_libraries,
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


def _tables() -> Mapping[str, Layout]:
    """The tables of converters/layouts, imported when they are first needed."""
    from jaxmix.converters.layouts import TABLES

    return TABLES


register_libraries(_tables)
