"""Registers the tables of the converters; each is imported when it is first needed."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.registry import register_libraries, register_name_maps

__all__: list[str] = []


def _layouts() -> Mapping[str, Any]:
    """The layouts of model libraries."""
    from jaxmix.converters.layouts import TABLES

    return TABLES


def _map(config: Mapping[str, Any]) -> Any:
    """The name map of a model of transformers or diffusers, by its config."""
    from jaxmix.converters.names import map_of

    return map_of(config)


def _maps() -> Iterable[Any]:
    """The name maps of all models."""
    from jaxmix.converters.names import all_maps

    return all_maps()


register_libraries(_layouts)
register_name_maps(_map, _maps)
