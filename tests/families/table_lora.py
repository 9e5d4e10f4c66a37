"""Rows of the contract's table for the forms of LoRA that have a family of their own."""

from typing import Any

import numpy as np

from jaxmix.families import ExpertLoRA

from .formulas import Leaves
from .row import Config, Factors, Row

__all__ = ["ROWS"]


def _experts(f: Factors, config: Config) -> ExpertLoRA:
    """As the reader does it: PEFT keeps A's experts slow, and B's fast."""
    a, b, count = f["lora_A"], f["lora_B"], config["experts"]
    return ExpertLoRA(
        a.reshape(count, -1, a.shape[1]),
        b.reshape(len(b), -1, count).transpose(2, 0, 1),
        config["alpha"] / (len(a) // count),
        in_first=config.get("in_first", False),
    )


def _formula(f: Any, config: Config, leaves: Leaves, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Expert by expert, in plain loops."""
    a, b, count = f["lora_A"], f["lora_B"], config["experts"]
    rank = len(a) // count
    weight = leaves.weight.copy()
    for e in range(count):
        columns = b[:, [r * count + e for r in range(rank)]]
        delta = s * config["alpha"] / rank * columns @ a[e * rank : (e + 1) * rank]
        weight[e] += delta.T if config.get("in_first") else delta
    return weight, leaves.bias


def _row(weight: tuple[int, ...], **config: Any) -> Row:
    count, *sizes = weight
    n, out = sizes if config.get("in_first") else sizes[::-1]
    shapes = {"lora_A": (count * 2, n), "lora_B": (out, 2 * count)}
    return Row(
        _experts,
        _formula,
        weight,
        shapes,
        f"{count} × rank 2",
        {"alpha": 5, "experts": count, **config},
    )


ROWS: dict[str, Row] = {
    "expert lora": _row((4, 6, 9)),
    "expert lora (in, out)": _row((4, 9, 6), in_first=True),
}
