"""Imports the names of a package when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["importer"]


def importer(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a package's ``__getattr__``, which imports a name when it is first used.

    Args:
        package: The package's full name.
        homes: Each public name, and the full name of the module that has it, or that it is.

    Returns:
        A function from a name to its value. It also imports the package's modules by their names.

    Raises:
        AttributeError: Raised by the returned function, if there is no such name or module.

    Example:
        >>> importer("json", {})("scanner").__name__
        'json.scanner'
    """

    def get(name: str) -> Any:
        if name in homes:
            home = import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        if not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
