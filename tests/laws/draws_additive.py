"""Random updates of the families that add a Δ of their own making."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.families import PVeRA, Update, VeRA

if TYPE_CHECKING:
    from .draws import Module

__all__ = ["MAKERS"]


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(size=shape)


def _vera(rng: np.random.Generator, module: "Module") -> VeRA:
    out, size = module.matrix
    a, b = _normal(rng, 2, size + 1), _normal(rng, out + 2, 2)
    return VeRA(a, b, _normal(rng, out), _normal(rng, 2))


def _pvera(rng: np.random.Generator, module: "Module") -> PVeRA:
    out, size = module.matrix
    a, b = _normal(rng, 4, size + 1), _normal(rng, out + 2, 2)
    return PVeRA(a, b, _normal(rng, out), _normal(rng, 4))


MAKERS: dict[str, Callable[[np.random.Generator, "Module"], Update]] = {
    "VeRA": _vera,
    "PVeRA": _pvera,
}
