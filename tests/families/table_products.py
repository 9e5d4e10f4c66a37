"""Rows and samples of LoHa and LoKr: products by entry, or by block."""

import math
from typing import Any

import numpy as np

from jaxmix.families import LoHa, LoKr

from . import formulas
from .module import RANK, Module, Rng, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample

__all__ = ["ROWS", "SAMPLES"]


def _loha(f: Factors, config: Config) -> LoHa:
    b1, a1, b2, a2 = (f[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return LoHa(b1, a1, b2, a2, config["alpha"] / 2, f.get("hada_t1"), f.get("hada_t2"))


def _lokr(f: Factors, config: Config) -> LoKr:
    def side(name: str) -> tuple[Any, ...]:
        return (f[name],) if name in f else (f[name + "_a"], f[name + "_b"])

    scale = config["alpha"] / config["r"]
    return LoKr(side("lokr_w1"), side("lokr_w2"), scale, f.get("lokr_t2"))


def _loha_row(weight: tuple[int, ...] = (6, 9), effective: bool = False) -> Row:
    out, n, *kernel = weight
    if effective:
        points = (*kernel, 1) if len(kernel) == 1 else tuple(kernel)
        templates = {"hada_w{}_a": (2, out), "hada_w{}_b": (2, n), "hada_t{}": (2, 2, *points)}
    else:
        templates = {"hada_w{}_a": (out, 2), "hada_w{}_b": (2, int(np.prod(weight[1:])))}
    shapes = {name.format(i): shape for i in (1, 2) for name, shape in templates.items()}
    return Row(_loha, formulas.loha, weight, shapes, "rank 2", {"alpha": 3})


def _lokr_row(size: str, weight: tuple[int, ...] = (6, 12), **shapes: tuple[int, ...]) -> Row:
    factor_shapes = {f"lokr_{name}": shape for name, shape in shapes.items()}
    return Row(_lokr, formulas.lokr, weight, factor_shapes, size, {"alpha": 3, "r": 2})


def _draw_loha(rng: Rng, module: Module) -> LoHa:
    (out, size), kernel = module.matrix, module.kernel
    r = RANK
    if len(kernel) == 2 and rng.random() < 0.5:
        b1, b2 = normal(rng, r, out), normal(rng, r, out)
        a1, a2 = (normal(rng, r, module.shape[1]) for _ in range(2))
        t1, t2 = normal(rng, r, r, *kernel), normal(rng, r, r, *kernel)
        return LoHa(b1, a1, b2, a2, 0.5, t1, t2, kernel=kernel)
    b1, b2 = normal(rng, out, r), normal(rng, out, r)
    return LoHa(b1, normal(rng, r, size), b2, normal(rng, r, size), 0.5)


def _draw_lokr(rng: Rng, module: Module) -> LoKr:
    """Draws every form: each factor full or a pair, and a Tucker core for two-dimensional kernels.

    torch.kron has no form for three-dimensional kernels, so a full factor is flattened there.
    """
    out, channels, *_ = module.shape
    kernel, r = module.kernel, RANK
    rows = next(n for n in (2, 3, 1) if out % n == 0)
    cols = next(n for n in (2, 3, 1) if channels % n == 0)
    x = (normal(rng, rows, cols),)
    if rng.random() < 0.5:
        x = (normal(rng, rows, r), normal(rng, r, cols))
    k, n, form = out // rows, channels // cols, rng.integers(3)
    if form == 0:
        y = normal(rng, k, n, *kernel)
        return LoKr(x, (y.reshape(k, -1) if len(kernel) == 3 else y,), 0.3)
    if form == 1 and len(kernel) == 2:
        core = normal(rng, r, r, *kernel)
        return LoKr(x, (normal(rng, r, k), normal(rng, r, n)), 0.3, core)
    return LoKr(x, (normal(rng, k, r), normal(rng, r, n * math.prod(kernel))), 0.3)


def _peft_loha(update: LoHa) -> Peft:
    factors = {"hada_w1_a": update.b1, "hada_w1_b": update.a1, "hada_t1": update.t1}
    factors |= {"hada_w2_a": update.b2, "hada_w2_b": update.a2, "hada_t2": update.t2}
    return formulas.loha, factors, {"alpha": float(update.scale) * len(update.a1)}


def _peft_lokr(update: LoKr) -> Peft:
    factors: dict[str, Any] = {"lokr_t2": update.t2}
    for name, side in (("lokr_w1", update.x), ("lokr_w2", update.y)):
        suffixes = ("",) if len(side) == 1 else ("_a", "_b")
        factors |= {name + suffix: x for suffix, x in zip(suffixes, side, strict=True)}
    return formulas.lokr, factors, {"alpha": float(update.scale), "r": 1}


_CONV1, _CONV2 = (6, 4, 3), (6, 4, 3, 2)


ROWS: dict[str, Row] = {
    "loha": _loha_row(),
    "loha conv2d": _loha_row(_CONV2),
    "loha conv1d": _loha_row(_CONV1),
    "loha effective conv2d": _loha_row(_CONV2, effective=True),
    "loha effective conv1d": _loha_row(_CONV1, effective=True),
    "lokr full": _lokr_row("full", w1=(2, 3), w2=(3, 4)),
    "lokr second factored": _lokr_row("rank 2", w1=(2, 3), w2_a=(3, 2), w2_b=(2, 4)),
    "lokr first factored": _lokr_row("rank 2", w1_a=(2, 2), w1_b=(2, 3), w2=(3, 4)),
    "lokr both factored": _lokr_row("rank 2", w1_a=(2, 2), w1_b=(2, 3), w2_a=(3, 2), w2_b=(2, 4)),
    "lokr conv2d full": _lokr_row("full", _CONV2, w1=(2, 2), w2=(3, 2, 3, 2)),
    "lokr conv2d factored": _lokr_row("rank 2", _CONV2, w1=(2, 2), w2_a=(3, 2), w2_b=(2, 12)),
    "lokr conv2d core": _lokr_row(
        "rank 2", _CONV2, w1=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 2)
    ),
    "lokr conv2d core, first factored": _lokr_row(
        "rank 2", _CONV2, w1_a=(2, 2), w1_b=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 2)
    ),
    # torch.kron pads w1 (2, 2) to (1, 2, 2): the weight is scrambled, and is trained that way.
    "lokr conv1d full": _lokr_row("full", _CONV1, w1=(2, 2), w2=(3, 2, 3)),
    "lokr conv1d full, first factored": _lokr_row(
        "rank 2", _CONV1, w1_a=(2, 2), w1_b=(2, 2), w2=(3, 2, 3)
    ),
    "lokr conv1d factored": _lokr_row("rank 2", _CONV1, w1=(2, 2), w2_a=(3, 2), w2_b=(2, 6)),
    "lokr conv1d core": _lokr_row(
        "rank 2", _CONV1, w1=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 1)
    ),
}


SAMPLES: dict[str, Sample] = {
    "LoHa": Sample(_draw_loha, _peft_loha),
    "LoKr": Sample(_draw_lokr, _peft_lokr),
}
