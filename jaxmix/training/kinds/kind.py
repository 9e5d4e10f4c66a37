"""What a kind of adapter is to `jaxmix.init`: how its updates start, and of which layers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmix.families import Update
from jaxmix.training.modules import Layer, Target

__all__ = ["LINEAR", "Kind"]

LINEAR: tuple[Layer, ...] = ("linear", "conv1d")


@dataclass(frozen=True)
class Kind:
    """A kind of adapter, as PEFT names its types.

    Args:
        start: Makes the update of a site, ``start(key, target, **words)``, or with `shared` those
            of all sites, ``start(key, {site: target}, **words)``. Its keyword-only arguments are
            the words that the kind takes, with PEFT's defaults.
        layers: What modules PEFT has it for.
        shared: Whether its sites share arrays, and so are made together.
        fixed: Words that the kind's name says already.

    Example:
        >>> def start(key, target, *, rank=8): ...
        >>> dict(Kind(start).words)
        {'rank': 8}

    Source: DESIGN.md, words: family.
    """

    start: Callable[..., Any]
    layers: tuple[Layer, ...] = LINEAR
    shared: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> dict[str, Any]:
        """The words that it takes, and what they are by default."""
        parameters = inspect.signature(self.start).parameters.values()
        only = inspect.Parameter.KEYWORD_ONLY
        return {
            x.name: x.default for x in parameters if x.kind is only and x.name not in self.fixed
        }

    def make(self, key: Any, target: Target, words: Mapping[str, Any]) -> Update:
        """The update of one site."""
        return self.start(key, target, **self.fixed, **words)

    def make_all(
        self, key: Any, targets: Mapping[str, Target], words: Mapping[str, Any]
    ) -> dict[str, Update]:
        """Those of all sites, where these share arrays."""
        return self.start(key, targets, **self.fixed, **words)
