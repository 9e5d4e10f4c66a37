"""Random updates of the families that turn or rescale a weight, or read it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.families import (
    BOFT,
    DEFT,
    HRA,
    IA3,
    PSOFT,
    FRoD,
    GLoRA,
    HiRA,
    MiSS,
    PEANuT,
    RoAd,
    Tokens,
    Update,
)
from jaxmix.families.boft import butterfly

if TYPE_CHECKING:
    from .draws import Module

__all__ = ["CURVED", "MAKERS"]

# Those that are not linear in their strength.
CURVED = ("BOFT", "RoAd")

Rng = np.random.Generator


def _normal(rng: Rng, *shape: int, std: float = 1.0) -> Any:
    return std * rng.normal(size=shape)


def _divisor(rng: Rng, size: int, *wanted: int) -> int:
    """One of the numbers that divide a size, or the size."""
    return int(rng.choice([n for n in wanted if size % n == 0] or [size]))


def _ia3(rng: Rng, module: "Module") -> IA3:
    if rng.random() < 0.5:
        return IA3(_normal(rng, module.shape[0]), axes=len(module.kernel))
    return IA3(_normal(rng, module.shape[1]), on_input=True, axes=len(module.kernel))


def _boft(rng: Rng, module: "Module") -> BOFT:
    out, size = module.matrix
    b = _divisor(rng, size, 2, 3, 4)
    blocks = size // b
    factors = 2 if b % 2 == 0 and blocks % 2 == 0 else 1
    orders: Any = butterfly(factors, blocks, b) if factors > 1 else None
    return BOFT(_normal(rng, factors, blocks, b, b, std=0.3), 1 + _normal(rng, out), orders)


def _hra(rng: Rng, module: "Module") -> HRA:
    return HRA(_normal(rng, module.matrix[1], 3), orthogonal=bool(rng.random() < 0.5))


def _road(rng: Rng, module: "Module") -> RoAd:
    out = module.matrix[0]
    variant: Any = int(rng.choice([1, 2, 4]))
    group, numbers = _divisor(rng, out, 2, 4), out * variant // 2
    return RoAd(_normal(rng, numbers), 1 + _normal(rng, numbers), variant, group)


def _tokens(rng: Rng, module: "Module") -> Tokens:
    out, size = module.matrix
    rows: Any = rng.permutation(out)[:2].astype(np.int32)
    return Tokens(_normal(rng, 2, size), rows)


def _miss(rng: Rng, module: "Module") -> MiSS:
    out, size = module.matrix
    form = rng.integers(3)
    if form == 0 and out % 2 == 0 and size % 2 == 0:
        return MiSS(_normal(rng, out // 2, 2, 2), bat=True)
    return MiSS(_normal(rng, 3, out if form == 1 else _divisor(rng, out, 1, 2)))


def _hira(rng: Rng, module: "Module") -> HiRA:
    out, size = module.matrix
    return HiRA(_normal(rng, 2, size), _normal(rng, out, 2), module.kernel)


def _glora(rng: Rng, module: "Module") -> GLoRA:
    out, size = module.matrix
    a = (_normal(rng, out, 2), _normal(rng, 2, size))
    b = [(_normal(rng, out, 1),), (_normal(rng, 1),), (_normal(rng, out, 2), a[1])][rng.integers(3)]
    if not module.bias:
        return GLoRA(a, b)
    return GLoRA(a, b, (_normal(rng, size, 1),), (_normal(rng, out),), (_normal(rng, 1),))


def _psoft(rng: Rng, module: "Module") -> PSOFT:
    out, size = module.matrix
    a, b, vector = _normal(rng, 3, size), _normal(rng, out, 3), _normal(rng, 3)
    return PSOFT(a, b, _normal(rng, 3), 0.7, vector, terms=[None, 5][rng.integers(2)])


def _deft(rng: Rng, module: "Module") -> DEFT:
    out, size = module.matrix
    p, injected = _normal(rng, out, 2), _normal(rng, 2, size)
    return DEFT(p, injected, 0.5, "qr" if rng.random() < 0.5 else "relu")


def _peanut(rng: Rng, module: "Module") -> PEANuT:
    out = module.matrix[0]
    levels = (_normal(rng, 2, 2),), (_normal(rng, 2, 2),)
    return PEANuT(_normal(rng, 2, out), _normal(rng, out, 2), *levels, 0.5, "tanh")


def _frod(rng: Rng, module: "Module") -> FRoD:
    size = module.matrix[1]
    places: Any = np.stack([rng.integers(0, size, 3) for _ in range(2)]).astype(np.int32)
    v = np.eye(size) + _normal(rng, size, size, std=0.1)
    return FRoD(v, _normal(rng, 3), places, _normal(rng, size))


MAKERS: dict[str, Callable[[Rng, "Module"], Update]] = {
    "IA3": _ia3,
    "BOFT": _boft,
    "HRA": _hra,
    "RoAd": _road,
    "Tokens": _tokens,
    "MiSS": _miss,
    "HiRA": _hira,
    "GLoRA": _glora,
    "PSOFT": _psoft,
    "DEFT": _deft,
    "PEANuT": _peanut,
    "FRoD": _frod,
}
