"""Layouts of params trees: rules, the layouts that have a name, and the model libraries' tables."""

from collections.abc import Iterable, Mapping
from typing import Any

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
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.naming import map_named, register_name_maps

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


def _tables() -> Mapping[str, Layout]:
    """The tables of converters/layouts, imported when they are first needed."""
    from jaxmix.converters.layouts import TABLES

    return TABLES


register_libraries(_tables)


def _map(config: Mapping[str, Any]) -> NameMap | None:
    """The name map of a model of transformers or diffusers, by its config."""
    from jaxmix.converters.names import map_of

    return map_of(config)


def _maps() -> Iterable[NameMap]:
    """The name maps of all models."""
    from jaxmix.converters.names import all_maps

    return all_maps()


register_name_maps(_map, _maps)
