"""Random updates of the families that add a Δ of their own making."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.families import (
    C3A,
    AdaMSS,
    DeLoRA,
    FourierFT,
    GraLoRA,
    KaSA,
    PVeRA,
    RandLoRA,
    SuperTuning,
    TinyLoRA,
    UniLoRA,
    Update,
    VBLoRA,
    VeRA,
    WaveFT,
)

if TYPE_CHECKING:
    from .draws import Module

__all__ = ["MAKERS"]

Rng = np.random.Generator
_RANK = 2


def _normal(rng: Rng, *shape: int) -> Any:
    return rng.normal(size=shape)


def _divisor(*sizes: int) -> int:
    """The largest small number that divides all sizes."""
    return next(n for n in (4, 3, 2, 1) if not any(size % n for size in sizes))


def _places(rng: Rng, module: "Module", count: int = 5) -> Any:
    """Distinct positions."""
    out, size = module.matrix
    flat = rng.permutation(out * size)[:count]
    return np.stack([flat // size, flat % size]).astype(np.int32)


def _vera(rng: Rng, module: "Module") -> VeRA:
    out, size = module.matrix
    a, b = _normal(rng, _RANK, size + 1), _normal(rng, out + 2, _RANK)
    return VeRA(a, b, _normal(rng, out), _normal(rng, _RANK))


def _pvera(rng: Rng, module: "Module") -> PVeRA:
    out, size = module.matrix
    a, b = _normal(rng, 2 * _RANK, size + 1), _normal(rng, out + 2, _RANK)
    return PVeRA(a, b, _normal(rng, out), _normal(rng, 2 * _RANK))


def _randlora(rng: Rng, module: "Module") -> RandLoRA:
    small, large = sorted(module.matrix)
    bases = -(-small // _RANK)
    a, b = _normal(rng, _RANK, 1, small + 1), _normal(rng, large + 1, bases + 1, _RANK)
    return RandLoRA(a, b, _normal(rng, _RANK, bases), _normal(rng, bases, small), 0.3)


def _delora(rng: Rng, module: "Module") -> DeLoRA:
    out, size = module.matrix
    a, b = _normal(rng, _RANK, size), _normal(rng, out, _RANK)
    return DeLoRA(a, b, _normal(rng, 1), 1 + rng.random(size))


def _vblora(rng: Rng, module: "Module") -> VBLoRA:
    """With all logits, or with the largest alone."""
    length = _divisor(*module.matrix)
    out, size = (n // length for n in module.matrix)
    sizes, bank = ((_RANK, size), (out, _RANK)), _normal(rng, 5, length)
    if rng.random() < 0.5:
        a, b = ((_normal(rng, *s, 5),) for s in sizes)
    else:
        a, b = ((rng.random((*s, 1)), rng.integers(0, 5, (*s, 2), np.uint8)) for s in sizes)
    return VBLoRA(a, b, bank, topk=2)


def _unilora(rng: Rng, module: "Module") -> UniLoRA:
    out, size = module.matrix
    shapes = ((_RANK, size), (out, _RANK))
    indices = (rng.integers(0, 6, shape).astype(np.int32) for shape in shapes)
    return UniLoRA(_normal(rng, 6), *indices, *(rng.random(shape) for shape in shapes))


def _tinylora(rng: Rng, module: "Module") -> TinyLoRA:
    out, size = module.matrix
    a, b = _normal(rng, _RANK, size), _normal(rng, out, _RANK)
    return TinyLoRA(a, b, _normal(rng, 3, _RANK, _RANK), _normal(rng, 3))


def _supertuning(rng: Rng, module: "Module") -> SuperTuning:
    (out, size), count = module.matrix, 5
    positions = rng.integers(0, out * size, count).astype(np.int32)
    if rng.random() < 0.5:
        return SuperTuning(_normal(rng, count), positions)
    a, b = _normal(rng, _RANK, size), _normal(rng, out, _RANK)
    return SuperTuning(_normal(rng, count), positions, 0.5, a, b)


def _c3a(rng: Rng, module: "Module") -> C3A:
    block = _divisor(*module.matrix)
    return C3A(_normal(rng, *(size // block for size in module.matrix), block))


def _fourierft(rng: Rng, module: "Module") -> FourierFT:
    count = 1 if rng.random() < 0.5 else 5
    return FourierFT(_normal(rng, count), _places(rng, module, count), 9.0)


def _waveft(rng: Rng, module: "Module") -> WaveFT:
    wavelet = [None, "db1", "db2", "sym4"][rng.integers(4)]
    return WaveFT(_normal(rng, 5), _places(rng, module), 2.0, wavelet)


def _gralora(rng: Rng, module: "Module") -> GraLoRA:
    (out, size), k = module.matrix, _divisor(*module.matrix)
    a, b = _normal(rng, k, size // k, 2 * k), _normal(rng, k, 2 * k, out // k)
    if rng.random() < 0.5:
        return GraLoRA(a, b, 0.3)
    return GraLoRA(a, b, 0.3, _normal(rng, _RANK, size), _normal(rng, out, _RANK))


def _adamss(rng: Rng, module: "Module") -> AdaMSS:
    (out, size), rows = module.matrix, rng.permutation(module.matrix[0]).astype(np.int32)
    a = (_normal(rng, 1, 3), _normal(rng, 2, 3))
    b = (_normal(rng, 1, 1), _normal(rng, out - 1, 2))
    bias = _normal(rng, 3) if module.bias else None
    return AdaMSS(a, b, _normal(rng, 3, size), rows, bias)


def _kasa(rng: Rng, module: "Module") -> KaSA:
    out, size = module.matrix
    return KaSA(_normal(rng, _RANK, size), _normal(rng, out, _RANK), _normal(rng, _RANK), 0.6)


MAKERS: dict[str, Callable[[Rng, "Module"], Update]] = {
    "AdaMSS": _adamss,
    "C3A": _c3a,
    "DeLoRA": _delora,
    "FourierFT": _fourierft,
    "GraLoRA": _gralora,
    "KaSA": _kasa,
    "PVeRA": _pvera,
    "RandLoRA": _randlora,
    "SuperTuning": _supertuning,
    "TinyLoRA": _tinylora,
    "UniLoRA": _unilora,
    "VBLoRA": _vblora,
    "VeRA": _vera,
    "WaveFT": _waveft,
}
