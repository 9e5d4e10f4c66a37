"""Rows of the contract's table for families that turn or rescale a weight, or read it."""

from typing import Any

from jaxmix.families import IA3

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


ROWS: dict[str, Row] = {
    "ia3": _ia3_row((6, 1)),
    "ia3 feedforward": _ia3_row((1, 9), size="9 inputs", feedforward=True),
    "ia3 fan_in_fan_out": _ia3_row((6, 1), (9, 6), fan_in_fan_out=True),
    "ia3 feedforward fan_in_fan_out": _ia3_row(
        (1, 9), (9, 6), "9 inputs", feedforward=True, fan_in_fan_out=True
    ),
    "ia3 conv2d": _ia3_row((1, 6, 1, 1), _CONV2),
    "ia3 feedforward conv2d": _ia3_row((1, 4, 1, 1), _CONV2, "4 inputs", feedforward=True),
}
