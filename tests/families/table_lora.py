"""Rows and samples of LoRA in all its forms: DoRA, AdaLoRA, experts."""

from typing import Any

import numpy as np

from jaxmix.families import AdaLoRA, ExpertLoRA, LoRA

from . import formulas
from .formulas import Leaves
from .module import RANK, Module, Rng, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample

__all__ = ["ROWS", "SAMPLES", "build_lora"]


def build_lora(f: Factors, config: Config) -> LoRA:
    a, b = f["lora_A"], f["lora_B"]
    rank = len(a)
    magnitude = f.get("lora_magnitude_vector")
    return LoRA(
        a.reshape(rank, -1),
        b.reshape(-1, rank),
        config["alpha"] / (rank**0.5 if config.get("rslora") else rank),
        magnitude=None if magnitude is None else magnitude.reshape(-1),
        bias=f.get("lora_B.bias"),
        kernel=a.shape[2:],
        transposed=bool(config.get("fan_in_fan_out")),
    )


def _lora_embedding(f: Factors, config: Config) -> LoRA:
    a, b = f["lora_embedding_A"], f["lora_embedding_B"]
    magnitude = f.get("lora_magnitude_vector")
    return LoRA(b.T, a.T, config["alpha"] / len(a), magnitude=magnitude, embedding=True)


def _adalora(f: Factors, config: Config) -> AdaLoRA:
    alpha = config["alpha"] if config["alpha"] > 0 else config["init_r"]
    scale = alpha / (config["init_r"] + 1e-5)
    fan = bool(config.get("fan_in_fan_out"))
    return AdaLoRA(f["lora_A"], f["lora_B"], f["lora_E"][:, 0], scale, transposed=fan)


def _lora_row(weight: tuple[int, ...] = (6, 9), extra_shapes: Any = None, **config: Any) -> Row:
    fan = config.get("fan_in_fan_out")
    out, n = weight[:2] if not fan else weight[1::-1]
    points = (1,) * (len(weight) - 2)
    shapes = {"lora_A": (3, n, *weight[2:]), "lora_B": (out, 3, *points), **(extra_shapes or {})}
    is_dora = "lora_magnitude_vector" in shapes
    formula = formulas.dora if is_dora else formulas.lora
    size = "rank 3 DoRA" if is_dora else "rank 3"
    return Row(build_lora, formula, weight, shapes, size, {"alpha": 5, **config}, not is_dora)


def _embedding_row(extra_shapes: Any = None) -> Row:
    shapes = {"lora_embedding_A": (3, 11), "lora_embedding_B": (6, 3), **(extra_shapes or {})}
    formula = formulas.dora_embedding if extra_shapes else formulas.lora_embedding
    size = "rank 3 DoRA" if extra_shapes else "rank 3"
    return Row(_lora_embedding, formula, (11, 6), shapes, size, {"alpha": 5}, not extra_shapes)


def _adalora_row(weight: tuple[int, ...] = (6, 9), rank: int = 3, **config: Any) -> Row:
    fan = config.get("fan_in_fan_out")
    rows, cols = (weight[1], weight[0]) if fan else (weight[0], int(np.prod(weight[1:])))
    shapes = {"lora_A": (rank, cols), "lora_B": (rows, rank), "lora_E": (rank, 1)}
    fields = {"alpha": 7, "init_r": 4, **config}
    formula = _adalora_fan if fan else formulas.adalora
    return Row(_adalora, formula, weight, shapes, f"rank {rank}", fields)


def _adalora_fan(f: Any, config: Config, leaves: Leaves, s: float) -> tuple[np.ndarray, np.ndarray]:
    transposed = Leaves(leaves.weight.T, leaves.bias, leaves.base_weight.T, leaves.base_bias)
    weight, bias = formulas.adalora(f, config, transposed, s)
    return weight.T, bias


def _experts(f: Factors, config: Config) -> ExpertLoRA:
    """Orders the experts as the reader does: outermost in PEFT's A, innermost in its B."""
    a, b, count = f["lora_A"], f["lora_B"], config["experts"]
    return ExpertLoRA(
        a.reshape(count, -1, a.shape[1]),
        b.reshape(len(b), -1, count).transpose(2, 0, 1),
        config["alpha"] / (len(a) // count),
        in_first=config.get("in_first", False),
    )


def _experts_formula(
    f: Any, config: Config, leaves: Leaves, s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes each expert, in plain loops."""
    a, b, count = f["lora_A"], f["lora_B"], config["experts"]
    rank = len(a) // count
    weight = leaves.weight.copy()
    for e in range(count):
        columns = b[:, [r * count + e for r in range(rank)]]
        delta = s * config["alpha"] / rank * columns @ a[e * rank : (e + 1) * rank]
        weight[e] += delta.T if config.get("in_first") else delta
    return weight, leaves.bias


def _experts_row(weight: tuple[int, ...], **config: Any) -> Row:
    count, *sizes = weight
    n, out = sizes if config.get("in_first") else sizes[::-1]
    shapes = {"lora_A": (count * 2, n), "lora_B": (out, 2 * count)}
    return Row(
        _experts,
        _experts_formula,
        weight,
        shapes,
        f"{count} × rank 2",
        {"alpha": 5, "experts": count, **config},
    )


def _draw_lora(rng: Rng, module: Module) -> LoRA:
    (out, size), r = module.matrix, RANK
    bias = normal(rng, out) if module.bias and rng.random() < 0.5 else None
    embedding = module.kind == "embedding"
    a, b = normal(rng, r, size), normal(rng, out, r)
    return LoRA(a, b, 0.7 / r, bias=bias, kernel=module.kernel, embedding=embedding)


def _draw_dora(rng: Rng, module: Module) -> LoRA:
    (out, size), r = module.matrix, RANK
    embedding = module.kind == "embedding"
    magnitude = 1 + rng.random(size if embedding else out)
    a, b = normal(rng, r, size), normal(rng, out, r)
    return LoRA(a, b, 0.4, magnitude=magnitude, kernel=module.kernel, embedding=embedding)


def _draw_adalora(rng: Rng, module: Module) -> AdaLoRA:
    (out, size), r = module.matrix, RANK + 1
    return AdaLoRA(normal(rng, r, size), normal(rng, out, r), normal(rng, r), 0.6)


def _draw_expert_lora(rng: Rng, module: Module) -> ExpertLoRA:
    count, p, q = module.shape
    if rng.random() < 0.5:
        return ExpertLoRA(normal(rng, count, 2, q), normal(rng, count, p, 2), 0.4)
    return ExpertLoRA(normal(rng, count, 2, p), normal(rng, count, q, 2), 0.4, in_first=True)


def _peft_lora(update: LoRA) -> Peft:
    config = {"alpha": float(update.scale) * len(update.a)}
    factors = {"lora_A": update.a, "lora_B": update.b, "lora_B.bias": update.bias}
    if update.embedding:
        factors = {"lora_embedding_A": update.b.T, "lora_embedding_B": update.a.T}
    if update.magnitude is None:
        return (formulas.lora_embedding if update.embedding else formulas.lora), factors, config
    factors["lora_magnitude_vector"] = update.magnitude
    return (formulas.dora_embedding if update.embedding else formulas.dora), factors, config


def _peft_adalora(update: AdaLoRA) -> Peft:
    factors = {"lora_A": update.a, "lora_B": update.b, "lora_E": update.e[:, None]}
    return formulas.adalora, factors, {"alpha": float(update.scale) * (1 + 1e-5), "init_r": 1}


def _peft_experts(update: ExpertLoRA) -> Peft:
    count, rank, size = update.a.shape
    factors = {"lora_A": update.a.reshape(count * rank, size)}
    factors["lora_B"] = update.b.transpose(1, 2, 0).reshape(-1, rank * count)
    config = {"alpha": float(update.scale) * rank, "experts": count, "in_first": update.in_first}
    return _experts_formula, factors, config


_CONV1, _CONV2, _CONV3 = (6, 4, 3), (6, 4, 3, 2), (4, 3, 2, 2, 2)
_M = {"lora_magnitude_vector": (6,)}
_BIAS = {"lora_B.bias": (6,)}


ROWS: dict[str, Row] = {
    "lora": _lora_row(),
    "lora rslora": _lora_row(rslora=True),
    "lora fan_in_fan_out": _lora_row((9, 6), fan_in_fan_out=True),
    "lora bias": _lora_row(extra_shapes=_BIAS),
    "lora conv1d": _lora_row(_CONV1),
    "lora conv2d": _lora_row(_CONV2, _BIAS),
    "lora conv3d": _lora_row(_CONV3),
    "lora embedding": _embedding_row(),
    "dora": _lora_row(extra_shapes=_M),
    "dora fan_in_fan_out": _lora_row((9, 6), _M, fan_in_fan_out=True),
    "dora bias": _lora_row(extra_shapes={**_M, **_BIAS}),
    "dora conv2d": _lora_row(_CONV2, {"lora_magnitude_vector": (1, 6, 1, 1)}),
    "dora embedding": _embedding_row(_M),
    "adalora": _adalora_row(),
    "adalora pruned": _adalora_row(rank=1, alpha=0),
    "adalora conv2d": _adalora_row(_CONV2),
    "adalora fan_in_fan_out": _adalora_row((9, 6), fan_in_fan_out=True),
    "expert lora": _experts_row((4, 6, 9)),
    "expert lora (in, out)": _experts_row((4, 9, 6), in_first=True),
}


SAMPLES: dict[str, Sample] = {
    "LoRA": Sample(_draw_lora, _peft_lora),
    "DoRA": Sample(_draw_dora, _peft_lora),
    "AdaLoRA": Sample(_draw_adalora, _peft_adalora),
    # Its leaf is a stack of matrices; a convolution's weight has the same number of axes.
    "ExpertLoRA": Sample(_draw_expert_lora, _peft_experts, shaped=True),
}
