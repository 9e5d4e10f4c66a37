"""`Initializer`: how `jaxmix.init` initializes the updates of one kind of adapter."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmix.families import Update
from jaxmix.training.modules import Layer, Target

__all__ = ["LINEAR", "Initializer"]

LINEAR: tuple[Layer, ...] = ("linear", "conv1d")


@dataclass(frozen=True)
class Initializer:
    """Initializes the updates of one kind of adapter.

    Args:
        start: Returns the update of one site, ``start(key, target, **options)``, or with `shared`
            the updates of all sites, ``start(key, {site: target}, **options)``. Its keyword-only
            arguments are the options of the kind, with PEFT's defaults.
        layers: The types of modules for which PEFT supports the kind.
        shared: Whether the sites share arrays and are therefore initialized together.
        fixed: Options that the name of the kind implies.

    Example:
        >>> def start(key, target, *, rank=8): ...
        >>> dict(Initializer(start).options)
        {'rank': 8}
    """

    start: Callable[..., Any]
    layers: tuple[Layer, ...] = LINEAR
    shared: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the kind, with their defaults."""
        parameters = inspect.signature(self.start).parameters.values()
        only = inspect.Parameter.KEYWORD_ONLY
        return {
            x.name: x.default for x in parameters if x.kind is only and x.name not in self.fixed
        }

    def make(self, key: Any, target: Target, options: Mapping[str, Any]) -> Update:
        """Returns the initialized update of one site."""
        return self.start(key, target, **self.fixed, **options)

    def make_all(
        self, key: Any, targets: Mapping[str, Target], options: Mapping[str, Any]
    ) -> dict[str, Update]:
        """Returns the initialized updates of all sites, for kinds whose sites share arrays."""
        return self.start(key, targets, **self.fixed, **options)
