"""Rows and samples of the families that rotate or rescale a weight."""

from typing import Any

import numpy as np

from jaxmix.families import BOFT, HRA, IA3, RoAd, Tokens
from jaxmix.families.boft import butterfly

from . import formulas_turning as formulas
from .formulas import Leaves
from .module import Module, Rng, divisor, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample

__all__ = ["ROWS", "SAMPLES"]

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
    properties = {"fits_out": is_feedforward, "fits_in": not is_feedforward}
    shapes = {"ia3_l": shape}
    return Row(_ia3, formulas.ia3, weight, shapes, size, config, False, properties=properties)


def _boft(f: Factors, config: Config) -> BOFT:
    r = f["boft_R"]
    orders = butterfly(*r.shape[:3]) if len(r) > 1 else None
    return BOFT(r, f["boft_s"].reshape(-1), orders)


def _boft_row(
    size: str, r: tuple[int, ...], weight: tuple[int, ...] = (5, 16), std: float = 0.7
) -> Row:
    shapes = {"boft_R": r, "boft_s": (weight[0], 1)}
    properties = {"reads_base": True, "reads_bias_alone": True}
    return Row(_boft, formulas.boft, weight, shapes, size, {}, False, std, properties=properties)


def _hra(f: Factors, config: Config) -> HRA:
    return HRA(f["hra_u"], bool(config.get("apply_GS")))


def _hra_row(rank: int, weight: tuple[int, ...] = (6, 9), **config: Any) -> Row:
    shapes, size = {"hra_u": (int(np.prod(weight[1:])), rank)}, f"{rank} reflections"
    return Row(
        _hra, formulas.hra, weight, shapes, size, config, False, properties={"fits_out": True}
    )


def _road(f: Factors, config: Config) -> RoAd:
    return RoAd(f["road_theta"], f["road_alpha"], config["variant"], config["group"])


def _road_row(variant: int, group: int) -> Row:
    shapes = {name: (12 * variant // 2,) for name in ("road_theta", "road_alpha")}
    size, config = f"variant {variant}, {6 * variant} angles", {"variant": variant, "group": group}
    properties = {"fits_in": True}
    return Row(_road, formulas.road, (12, 5), shapes, size, config, False, properties=properties)


def _tokens(f: Factors, config: Config) -> Tokens:
    return Tokens(f["trainable_tokens_delta"], f["token_indices"])


def _draw_ia3(rng: Rng, module: Module) -> IA3:
    if rng.random() < 0.5:
        return IA3(normal(rng, module.shape[0]), axes=len(module.kernel))
    return IA3(normal(rng, module.shape[1]), on_input=True, axes=len(module.kernel))


def _draw_boft(rng: Rng, module: Module) -> BOFT:
    out, size = module.matrix
    b = divisor(rng, size, 2, 3, 4)
    blocks = size // b
    factors = 2 if b % 2 == 0 and blocks % 2 == 0 else 1
    orders: Any = butterfly(factors, blocks, b) if factors > 1 else None
    return BOFT(normal(rng, factors, blocks, b, b, std=0.3), 1 + normal(rng, out), orders)


def _draw_hra(rng: Rng, module: Module) -> HRA:
    return HRA(normal(rng, module.matrix[1], 3), orthogonal=bool(rng.random() < 0.5))


def _draw_road(rng: Rng, module: Module) -> RoAd:
    out = module.matrix[0]
    variant: Any = int(rng.choice([1, 2, 4]))
    group, numbers = divisor(rng, out, 2, 4), out * variant // 2
    return RoAd(normal(rng, numbers), 1 + normal(rng, numbers), variant, group)


def _draw_tokens(rng: Rng, module: Module) -> Tokens:
    out, size = module.matrix
    rows: Any = rng.permutation(out)[:2].astype(np.int32)
    return Tokens(normal(rng, 2, size), rows)


def _ia3_of_matrix(
    f: Factors, config: Config, leaves: Leaves, s: float
) -> tuple[np.ndarray, np.ndarray]:
    """IA3 of a convolution as a matrix: each point of a channel is a column."""
    vector = f["ia3_l"]
    if config["feedforward"]:
        vector = np.repeat(vector, leaves.weight.shape[1] // len(vector))
    return formulas.ia3({"ia3_l": vector}, config, leaves, s)


def _peft_ia3(update: IA3) -> Peft:
    return _ia3_of_matrix, {"ia3_l": update.vector}, {"feedforward": update.on_input}


def _peft_boft(update: BOFT) -> Peft:
    return formulas.boft, {"boft_R": update.generator, "boft_s": update.rescale}, {}


def _peft_hra(update: HRA) -> Peft:
    return formulas.hra, {"hra_u": update.u}, {"apply_GS": update.orthogonal}


def _peft_road(update: RoAd) -> Peft:
    factors = {"road_theta": update.theta, "road_alpha": update.alpha}
    return formulas.road, factors, {"variant": update.variant, "group": update.group}


def _peft_tokens(update: Tokens) -> Peft:
    factors = {"trainable_tokens_delta": update.values, "token_indices": update.rows}
    return formulas.tokens, factors, {}


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
        properties={"fits_out": True},
    ),
}


SAMPLES: dict[str, Sample] = {
    "IA3": Sample(_draw_ia3, _peft_ia3),
    "BOFT": Sample(_draw_boft, _peft_boft),
    "HRA": Sample(_draw_hra, _peft_hra),
    "RoAd": Sample(_draw_road, _peft_road),
    "Tokens": Sample(_draw_tokens, _peft_tokens),
}
