"""Rows of the contract's table for families that turn or rescale a weight."""

from typing import Any

import numpy as np

from jaxmix.families import BOFT, HRA, IA3, RoAd, Tokens
from jaxmix.families.boft import butterfly

from . import formulas_turning as formulas
from .row import Config, Factors, Row

__all__ = ["ROWS"]

_CONV2 = (6, 4, 3, 2)


def _ia3(f: Factors, config: Config) -> IA3:
    return IA3(
        f["ia3_l"].reshape(-1),
        on_input=bool(config.get("feedforward")),
        axes=max(f["ia3_l"].ndim - 2, 0),
        transposed=bool(config.get("fan_in_fan_out")),
    )


def _ia3_row(
    shape: tuple[int, ...], weight: tuple[int, ...] = (6, 9), size: str = "6 outputs", **config: Any
) -> Row:
    is_feedforward = bool(config.get("feedforward"))
    says = {"fits_out": is_feedforward, "fits_in": not is_feedforward}
    shapes = {"ia3_l": shape}
    return Row(_ia3, formulas.ia3, weight, shapes, size, config, False, says=says)


def _boft(f: Factors, config: Config) -> BOFT:
    r = f["boft_R"]
    orders = butterfly(*r.shape[:3]) if len(r) > 1 else None
    return BOFT(r, f["boft_s"].reshape(-1), orders)


def _boft_row(
    size: str, r: tuple[int, ...], weight: tuple[int, ...] = (5, 16), std: float = 0.7
) -> Row:
    shapes = {"boft_R": r, "boft_s": (weight[0], 1)}
    says = {"reads_base": True, "reads_bias_alone": True}
    return Row(_boft, formulas.boft, weight, shapes, size, {}, False, std, says=says)


def _hra(f: Factors, config: Config) -> HRA:
    return HRA(f["hra_u"], bool(config.get("apply_GS")))


def _hra_row(rank: int, weight: tuple[int, ...] = (6, 9), **config: Any) -> Row:
    shapes, size = {"hra_u": (int(np.prod(weight[1:])), rank)}, f"{rank} reflections"
    return Row(_hra, formulas.hra, weight, shapes, size, config, False, says={"fits_out": True})


def _road(f: Factors, config: Config) -> RoAd:
    return RoAd(f["road_theta"], f["road_alpha"], config["variant"], config["group"])


def _road_row(variant: int, group: int) -> Row:
    shapes = {name: (12 * variant // 2,) for name in ("road_theta", "road_alpha")}
    size, config = f"variant {variant}, {6 * variant} angles", {"variant": variant, "group": group}
    says = {"fits_in": True}
    return Row(_road, formulas.road, (12, 5), shapes, size, config, False, says=says)


def _tokens(f: Factors, config: Config) -> Tokens:
    return Tokens(f["trainable_tokens_delta"], f["token_indices"])


ROWS: dict[str, Row] = {
    "ia3": _ia3_row((6, 1)),
    "ia3 feedforward": _ia3_row((1, 9), size="9 inputs", feedforward=True),
    "ia3 fan_in_fan_out": _ia3_row((6, 1), (9, 6), fan_in_fan_out=True),
    "ia3 feedforward fan_in_fan_out": _ia3_row(
        (1, 9), (9, 6), "9 inputs", feedforward=True, fan_in_fan_out=True
    ),
    "ia3 conv2d": _ia3_row((1, 6, 1, 1), _CONV2),
    "ia3 feedforward conv2d": _ia3_row((1, 4, 1, 1), _CONV2, "4 inputs", feedforward=True),
    "boft": _boft_row("block 4", (1, 4, 4, 4)),
    "boft odd": _boft_row("block 3", (1, 3, 3, 3), (7, 9)),
    "boft two factors": _boft_row("block 4 × 2", (2, 4, 4, 4)),
    "boft three factors": _boft_row("block 2 × 3", (3, 8, 2, 2)),
    "boft conv2d": _boft_row("block 2 × 2", (2, 12, 2, 2), _CONV2),
    "hra": _hra_row(4),
    "hra odd": _hra_row(3),
    "hra one": _hra_row(1),
    "hra more than inputs": _hra_row(11),
    "hra apply_GS": _hra_row(4, apply_GS=True),
    "hra conv2d": _hra_row(4, _CONV2),
    **{f"road_{v} in groups of {g}": _road_row(v, g) for v in (1, 2, 4) for g in (2, 4, 12)},
    "tokens": Row(
        _tokens,
        formulas.tokens,
        (11, 6),
        {"trainable_tokens_delta": (3, 6)},
        "3 rows",
        additive=False,
        fixed={"token_indices": np.array([7, 0, 10], np.int32)},
        says={"fits_out": True},
    ),
}
