"""Tables that other packages register for `jaxmix.placement`, which does not import them.

This module imports nothing of jaxmix. So `import jaxmix` can register tables that are read only
when they are first needed.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["LIBRARIES", "NAME_MAPS", "register_libraries", "register_name_maps"]

# Functions that return {name: layout}.
LIBRARIES: list[Callable[[], Mapping[str, Any]]] = []
# A function from a config to its name map or None, and one that returns all name maps.
NAME_MAPS: list[tuple[Callable[[Mapping[str, Any]], Any], Callable[[], Iterable[Any]]]] = []


def register_libraries(tables: Callable[[], Mapping[str, Any]]) -> None:
    """Registers layouts of model libraries, so that they are found by name and tried on trees.

    Args:
        tables: Returns ``{name: layout}``; called when a layout is first looked up.
    """
    LIBRARIES.append(tables)


def register_name_maps(
    find: Callable[[Mapping[str, Any]], Any], all_maps: Callable[[], Iterable[Any]]
) -> None:
    """Registers the name maps of a library of models.

    Args:
        find: Returns the map of a config; None if there is none.
        all_maps: Returns all maps, to find one from names alone.
    """
    NAME_MAPS.append((find, all_maps))
