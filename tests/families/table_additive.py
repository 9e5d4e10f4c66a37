"""Rows of the contract's table for the families that add a Δ of their own making."""

from typing import Any

from jaxmix.families import PVeRA, VeRA

from . import formulas_additive as formulas
from .row import Config, Factors, Row

__all__ = ["ROWS"]

_SPARE = {"fits_in": True}


def _fan(config: Config) -> bool:
    return bool(config.get("fan_in_fan_out"))


def _vera(f: Factors, config: Config) -> VeRA:
    make, name = (PVeRA, "pvera") if "pvera_A" in f else (VeRA, "vera")
    names = ("A", "B", "lambda_b", "lambda_d")
    return make(*(f[f"{name}_{n}"] for n in names), transposed=_fan(config))


def _vera_row(spare: int = 0, name: str = "vera", twice: int = 1, **config: Any) -> Row:
    weight = (9, 6) if config.get("fan_in_fan_out") else (6, 9)
    shapes = {
        f"{name}_A": (3 * twice, 9 + spare),
        f"{name}_B": (6 + 2 * spare, 3),
        f"{name}_lambda_b": (6,),
        f"{name}_lambda_d": (3 * twice,),
    }
    formula, says = getattr(formulas, name), _SPARE if spare else {}
    return Row(_vera, formula, weight, shapes, "rank 3", config, says=says)


ROWS: dict[str, Row] = {
    "vera": _vera_row(),
    "vera shared": _vera_row(spare=2),
    "vera fan_in_fan_out": _vera_row(spare=1, fan_in_fan_out=True),
    "pvera": _vera_row(2, "pvera", 2),
    "pvera fan_in_fan_out": _vera_row(2, "pvera", 2, fan_in_fan_out=True),
}
