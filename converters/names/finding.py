"""Finds the name map of a model, by its config or among all of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.names.images import image_map, image_maps
from jaxmix.converters.names.table import name_map, name_maps
from jaxmix.placement.name_map import NameMap

__all__ = ["all_maps", "map_of"]


def map_of(config: Mapping[str, Any]) -> NameMap | None:
    """Returns the name map of a model.

    Args:
        config: The config.json of a transformers or diffusers model.

    Returns:
        The map; None if there is none.

    Example:
        >>> [map_of({"model_type": name}).prefix for name in ("bert", "flux")]
        ['bert', 'transformer']
    """
    return image_map(config) or name_map(config)


def all_maps() -> Iterator[NameMap]:
    """Yields the name maps of all models."""
    yield from name_maps()
    yield from image_maps()
