"""Makers of the updates that foreign formats and combinations bring: see `draws`."""

from collections.abc import Callable

import numpy as np

from jaxmix.families import Delta, DiagOFT, ExpertLoRA, LoHa, Normed, Rebase, Update

from .draws import Module, normal

__all__ = ["MAKERS"]


def _delta(rng: np.random.Generator, module: Module) -> Delta:
    bias = normal(rng, module.shape[0]) if module.bias else None
    return Delta(normal(rng, *module.shape), bias)


def _diag_oft(rng: np.random.Generator, module: Module) -> DiagOFT:
    side = ("out", "in")[rng.integers(2)]
    size = module.matrix[0 if side == "out" else 1]
    b = next(n for n in (2, 3, size) if size % n == 0)
    count = 1 if rng.random() < 0.3 else size // b
    rescale = 1 + normal(rng, module.matrix[0], std=0.3) if rng.random() < 0.5 else None
    bound = 0.5 if rng.random() < 0.5 else None
    factor = (1.0, 0.5)[rng.integers(2)]
    blocks = normal(rng, count, b, b, std=0.4)
    return DiagOFT(blocks, rescale, bound, factor, side, bool(rng.integers(2)))


def _expert_lora(rng: np.random.Generator, module: Module) -> ExpertLoRA:
    count, p, q = module.shape
    if rng.random() < 0.5:
        return ExpertLoRA(normal(rng, count, 2, q), normal(rng, count, p, 2), 0.4)
    return ExpertLoRA(normal(rng, count, 2, p), normal(rng, count, q, 2), 0.4, in_first=True)


def _normed(rng: np.random.Generator, module: Module) -> Normed:
    out, size = module.matrix
    inner = LoHa(normal(rng, out, 2), normal(rng, 2, size), normal(rng, out, 2),
                 normal(rng, 2, size), 0.3)  # fmt: skip
    return Normed(inner, 1 + rng.random(out))


def _rebase(rng: np.random.Generator, module: Module) -> Rebase:
    return Rebase(normal(rng, *module.matrix))


MAKERS: dict[str, Callable[[np.random.Generator, Module], Update]] = {
    "Delta": _delta,
    "DiagOFT": _diag_oft,
    "ExpertLoRA": _expert_lora,
    "Normed": _normed,
    "Rebase": _rebase,
}
