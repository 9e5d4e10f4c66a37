"""The formulas of the contract, for updates as they are: what `truth` folds words of these with."""

from collections.abc import Callable, Mapping
from typing import Any

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

from ..families import formulas_reading as reading
from ..families import formulas_turning as turning
from ..families.formulas import Leaves

__all__ = ["step"]

# A formula with PEFT's factors and config for an update.
_Told = tuple[Callable[..., Any], dict[str, Any], Mapping[str, Any]]


def step(leaves: Leaves, s: float, update: Update) -> tuple[np.ndarray, np.ndarray] | None:
    """The new weight and bias of a site, or None for an update of another family.

    Args:
        leaves: a matrix and a bias, as they are and as the base has them; zeros for no bias.
        s: the strength.
        update: the update.
    """
    told = _told(update)
    if told is None:
        return None
    formula, factors, config = told
    named = {name: np.asarray(x) for name, x in factors.items() if x is not None}
    if isinstance(update, IA3) and update.on_input:
        points = leaves.weight.shape[1] // len(named["ia3_l"])
        named["ia3_l"] = np.repeat(named["ia3_l"], points)
    return formula(named, config, leaves, s)


def _told(update: Update) -> _Told | None:
    match update:
        case IA3():
            return turning.ia3, {"ia3_l": update.vector}, {"feedforward": update.on_input}
        case BOFT():
            return turning.boft, {"boft_R": update.generator, "boft_s": update.rescale}, {}
        case HRA():
            return turning.hra, {"hra_u": update.u}, {"apply_GS": update.orthogonal}
        case RoAd():
            factors = {"road_theta": update.theta, "road_alpha": update.alpha}
            return turning.road, factors, {"variant": update.variant, "group": update.group}
        case Tokens():
            factors = {"trainable_tokens_delta": update.values, "token_indices": update.rows}
            return turning.tokens, factors, {}
        case _:
            return _told_of_readers(update)


def _told_of_readers(update: Update) -> _Told | None:
    match update:
        case MiSS():
            formula = reading.miss_bat if update.bat else reading.miss
            return formula, {"miss_block": update.block}, {}
        case HiRA():
            return reading.hira, {"hira_A": update.a, "hira_B": update.b}, {}
        case GLoRA():
            paths = {"A": update.a, "B": update.b, "C": update.c, "D": update.d, "E": update.e}
            ends = {1: ("X",), 2: ("Xd", "Xu"), 0: ()}
            factors = {
                f"glora_{name}.{end}": x
                for name, path in paths.items()
                for end, x in zip(ends[len(path)], path, strict=True)
            }
            return reading.glora, factors, {}
        case PSOFT():
            factors = {"A": update.a, "B": update.b, "psoft_R.weight": update.rotation}
            factors |= {"psoft_R.vector_b": update.outputs, "psoft_R.vector_a": update.inputs}
            return reading.psoft, factors, {"scale": update.scale, "terms": update.terms}
        case DEFT():
            factors = {"deft_P": update.p, "deft_R": update.injected}
            return reading.deft, factors, {"scale": update.scale, "method": update.method}
        case PEANuT():
            factors = {"peanut_A": update.a, "peanut_B": update.b}
            factors |= {f"encoder{i}": x for i, x in enumerate(update.encoders)}
            factors |= {f"decoder{i}": x for i, x in enumerate(update.decoders)}
            depth, act = len(update.encoders), update.activation
            config = {"depth": depth, "act_fn": act, "scaling": update.scale}
            return reading.peanut, factors, config
        case FRoD():
            factors = {"frod_V": update.v, "frod_lambda_s_values": update.values}
            factors |= {"frod_s_indices": update.indices, "frod_lambda_l": update.lengths}
            return reading.frod, factors, {}
        case _:
            return None
