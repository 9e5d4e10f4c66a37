"""Builds an update from the tensors of a module: one function per family of LyCORIS.

Orientation: lora_down (r, in, *k), lora_up (out, r, 1 …), weight (out, in, *k).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from jaxmix.converters.adapters.common.shapes import Factor, SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES
from jaxmix.converters.adapters.lycoris.keys import FAMILIES, OPTIONAL
from jaxmix.converters.adapters.lycoris.turns import diag_oft, glora, ia3, scale_of
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, listing
from jaxmix.families import Delta, LoHa, LoKr, LoRA, Normed, Replace, Together, Update

__all__ = ["build", "build_all", "flat_inputs"]

# LyCORIS adds the machine epsilon of the magnitude's dtype, which is always float32 in LyCORIS.
NORM_EPS = float(np.finfo(np.float32).eps)


def build_all(sites: Mapping[str, SiteTensors], where: str) -> dict[str, Update]:
    """Builds the update of each site; failures are raised together, with the first one's type.

    Args:
        sites: ``{site: {parameter: array}}``.
        where: The file, for messages.

    Returns:
        ``{site: update}``.

    Raises:
        JaxmixError: Of the first failure's type, with all of them listed.
    """
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, factors in sites.items():
        try:
            updates[site] = build(factors)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        raise type(failed[0][1])(
            f"{where}: tensors that are not a valid update:"
            f"{listing(f'{site}: {error}' for site, error in failed)}\nWas the file edited or "
            f"truncated?"
        ) from failed[0][1]
    return updates


def build(factors: SiteTensors) -> Update:
    """Builds the update of a module.

    Args:
        factors: ``{parameter: array}``, by the names of `jaxmix.converters.adapters.lycoris.keys`.

    Returns:
        The update, with its norm and its bias if the file has them.

    Raises:
        CheckpointError: If tensors are missing, or belong to more than one family.
        ShapeError: If they disagree.
        UnsupportedError: If they are of an unknown form.

    Example:
        >>> down, up = np.ones((1, 3)), np.ones((2, 1))
        >>> build({"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(2.0)}).scale
        2.0

    Source: LyCORIS, ``lycoris/modules``.
    """
    families = [name for name, keys in FAMILIES.items() if any(key in factors for key in keys)]
    if len(families) > 1:
        raise CheckpointError(
            f"{describe_shapes(factors)}: factors of {' and '.join(families)} at the same module"
        )
    if wrong := [name for name, x in factors.items() if x.dtype not in FACTOR_DTYPES and x.ndim]:
        raise CheckpointError(
            f"{', '.join(wrong)} has a dtype of integers, in {describe_shapes(factors)}"
        )
    used = dict(factors)
    norm, bias = used.pop("dora_scale", None), used.pop("diff_b", None)
    if not families and bias is None:
        raise CheckpointError(f"{describe_shapes(factors)} without the factors that they belong to")
    parts: list[Update] = []
    if families:
        family = families[0]
        belonging = (*FAMILIES[family], *OPTIONAL.get(family, ()))
        if unused := [name for name in used if name not in belonging]:
            problem = f"{', '.join(unused)} has no meaning with {family}"
            raise CheckpointError(f"{describe_shapes(factors)}: {problem}")
        update = BUILDERS[family](used)
        parts.append(update if norm is None else _normed(update, norm))
    elif norm is not None:
        raise CheckpointError(
            f"{describe_shapes(factors)}: dora_scale without an update to normalize"
        )
    if bias is not None:
        if bias.ndim != 1 or not bias.size:
            raise ShapeError(f"diff_b has shape {bias.shape}, expected (out,)")
        if parts and isinstance(parts[0], Delta) and parts[0].bias is None:
            return replace(parts[0], bias=bias)
        parts.append(Delta(bias=bias))
    return parts[0] if len(parts) == 1 else Together(tuple(parts))


def _lora(factors: SiteTensors) -> Update:
    """LoRA, LoCon and DyLoRA; a Tucker core is multiplied into A."""
    down, up = required(factors, "lora_down.weight", "lora_up.weight")
    mid, bias = factors.get("lora_mid.weight"), factors.get("lora_up.bias")
    rank = down.shape[0] if down.ndim else 0
    _check(factors, down.ndim in (2, 3, 4, 5) and down.size > 0, "lora_down with 2 to 5 axes")
    fits = up.ndim in (2, down.ndim) and up.shape[1:] == (rank,) + (1,) * (up.ndim - 2)
    _check(factors, fits and up.size > 0, f"lora_up (out, {rank}, 1 …)")
    kernel = down.shape[2:]
    if mid is not None:
        fits = mid.shape[:2] == (rank, rank) and mid.ndim == down.ndim and mid.size
        fits = fits and down.shape[2:] == (1,) * (down.ndim - 2)
        _check(factors, bool(fits), f"lora_mid ({rank}, {rank}, kernel …) and lora_down (…, 1 …)")
        kernel, down = mid.shape[2:], _with_core(mid, down.reshape(rank, -1))
    _check(factors, bias is None or bias.shape == up.shape[:1], "lora_up.bias (out,)")
    magnitude = factors.get("lora_magnitude_vector")
    if magnitude is not None:
        _check(factors, magnitude.size == up.shape[0], "lora_magnitude_vector (out,)")
        magnitude = magnitude.reshape(-1)
    scale = scale_of(factors, rank)
    a, b = down.reshape(rank, -1), up.reshape(-1, rank)
    return LoRA(a, b, scale, magnitude=magnitude, bias=bias, kernel=kernel)


def _loha(factors: SiteTensors) -> Update:
    """LoHa, as in PEFT."""
    b1, a1, b2, a2 = required(factors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    t1, t2 = factors.get("hada_t1"), factors.get("hada_t2")
    if (t1 is None) != (t2 is None):
        raise CheckpointError(
            f"one of hada_t1 and hada_t2 is missing; found {describe_shapes(factors)}"
        )
    _check(factors, all(x.ndim == 2 and x.size for x in (b1, a1, b2, a2)), "matrices")
    axis, rank = (1, a1.shape[0]) if t1 is None else (0, a1.shape[0])
    ranks = {b1.shape[axis], b2.shape[axis], a1.shape[0], a2.shape[0]}
    _check(factors, ranks == {rank} and a1.shape == a2.shape and b1.shape == b2.shape, "one rank")
    if t1 is not None and t2 is not None:
        fits = t1.shape == t2.shape and t1.shape[:2] == (rank, rank) and t1.ndim > 2 and t1.size
        _check(factors, bool(fits), f"cores ({rank}, {rank}, kernel …)")
    kernel = () if t1 is None else t1.shape[2:]
    return LoHa(b1, a1, b2, a2, scale_of(factors, rank), t1, t2, kernel=kernel)


def _lokr(factors: SiteTensors) -> Update:
    """LoKr, its form determined by the keys; two dense factors have scale 1."""
    x: tuple[Factor, ...] = _side(factors, "lokr_w1")
    y: tuple[Factor, ...] = _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    if core is not None and len(y) == 1:
        raise CheckpointError(f"{describe_shapes(factors)}: lokr_t2 needs lokr_w2_a and lokr_w2_b")
    _check(factors, all(a.ndim > 1 and a.size for a in (*x, *y)), "matrices")
    _check(factors, all(a.ndim == 2 for a in (*x, *y[:-1])) or len(y) == 1, "matrices")
    _check(factors, x[0].ndim == 2, "lokr_w1 (rows, columns)")
    ranks = {side[1].shape[0] for side in (x, y) if len(side) == 2}
    if len(x) == 2:
        _check(factors, x[0].shape[1] == x[1].shape[0], "one rank in lokr_w1_a and lokr_w1_b")
    if len(y) == 2:
        a, b = y
        _check(factors, a.shape[0 if core is not None else 1] == b.shape[0], "one rank in lokr_w2")
        # Some files have (r, in, *k). PEFT's formula would scramble the three axes of a Conv1d.
        y = (a, b.reshape(b.shape[0], -1))
    elif y[0].ndim == 3:
        y = (y[0].reshape(y[0].shape[0], -1),)
    if core is not None and len(y) == 2:
        rank = y[1].shape[0]
        fits = core.shape[:2] == (rank, rank) and core.ndim > 2 and core.size
        _check(factors, bool(fits), f"lokr_t2 ({rank}, {rank}, kernel …)")
    _check(factors, len(ranks) < 2, "one rank in lokr_w1 and lokr_w2")
    scale = scale_of(factors, ranks.pop() if ranks else None)
    if core is not None and core.ndim == 3:
        # Multiplied out, for the same reason.
        core_product = np.einsum("ijk,ip,jq->pqk", *map(_wide, (core, *y)))
        flat: Factor = _narrow(core_product.reshape(core_product.shape[0], -1), core)
        y, core = (flat,), None
    return LoKr(x, y, scale, core)


def _side(factors: SiteTensors, name: str) -> tuple[Factor, ...]:
    """A Kronecker factor: dense, or as a pair."""
    present = tuple(key for key in (name, f"{name}_a", f"{name}_b") if key in factors)
    if present in ((name,), (f"{name}_a", f"{name}_b")):
        return tuple(factors[key] for key in present)
    raise CheckpointError(f"{describe_shapes(factors)}: expected {name}, or {name}_a and {name}_b")


def _diff(factors: SiteTensors) -> Update:
    """A dense difference."""
    diff = factors["diff"]
    _check(factors, diff.ndim > 0 and diff.size > 0, "diff (out, in, kernel …)")
    return Delta(weight=diff)


def _saved_norm(factors: SiteTensors) -> Update:
    """The trained weight of a norm."""
    weight = factors["saved_weight"]
    _check(factors, weight.ndim == 1 and weight.size > 0, "a vector")
    return Replace(weight)


def _norm(factors: SiteTensors) -> Update:
    """Differences of a norm's weight and bias."""
    (weight,) = required(factors, "w_norm")
    bias = factors.get("b_norm")
    _check(factors, weight.ndim == 1 and (bias is None or bias.shape == weight.shape), "vectors")
    return Delta(weight=weight, bias=bias)


def _normed(update: Update, magnitude: Factor) -> Update:
    """Adds DoRA's norm: per output if the magnitude is (out, 1 …), per input if (1, in, 1 …)."""
    if not isinstance(update, LoRA | LoHa | LoKr) or getattr(update, "magnitude", None) is not None:
        raise CheckpointError(f"dora_scale with {update.family}, expected LoRA, LoHa or LoKr")
    shape = magnitude.shape
    if magnitude.ndim < 2 or magnitude.size == 0 or math.prod(shape[2:]) != 1 or 1 not in shape[:2]:
        raise ShapeError(f"dora_scale has shape {shape}, expected (out, 1 …) or (1, in, 1 …)")
    by_output = shape[1] == 1 and (shape[0] > 1 or _rows(update) == 1)
    # A magnitude has as many axes as the weight; with two axes its layer has no kernel.
    if not by_output and len(shape) == 2 and shape[1] != (inputs := flat_inputs(update)):
        expected = f"({_rows(update)}, 1) or (1, {inputs})"
        raise ShapeError(f"dora_scale has shape {shape}, expected {expected}")
    return Normed(update, magnitude.reshape(-1), NORM_EPS, axis="out" if by_output else "in")


def _rows(update: Update) -> int:
    """The number of outputs of an update."""
    match update:
        case LoRA():
            return update.b.shape[0]
        case LoHa():
            return update.b1.shape[0 if update.t1 is None else 1]
        case LoKr():
            second = update.y[0].shape[0 if update.t2 is None else 1]
            return update.x[0].shape[0] * second
        case _:
            return 0


def flat_inputs(update: Update) -> int:
    """Returns the number of inputs of an update, times its kernel's points if it has them flat.

    Args:
        update: The update; only a LoRA has its kernel's shape.

    Returns:
        The number; 0 if it is neither a LoRA, a LoHa nor a LoKr.
    """
    match update:
        case LoRA():
            return update.a.shape[1] // math.prod(update.kernel)
        case LoHa():
            return update.a1.shape[1]
        case LoKr():
            return update.x[-1].shape[1] * update.y[-1].shape[1]
        case _:
            return 0


def _with_core(mid: Factor, down: Factor) -> Factor:
    """``Σⱼ mid[i, j, k] down[j, n]`` as (r, in·k), in float32 or wider."""
    inner = np.einsum("ij...,jn->in...", _wide(mid), _wide(down))
    return _narrow(inner.reshape(inner.shape[0], -1), mid)


def _wide(x: Factor) -> np.ndarray:
    return np.asarray(x, np.float64)


def _narrow(product: np.ndarray, like: Factor) -> np.ndarray:
    """Rounds a product of factors once, to float32; not at all if they are float64."""
    return product.astype(np.promote_types(like.dtype, np.float32))


def _check(factors: SiteTensors, holds: bool, expected: str) -> None:
    """Raises an error with the expected shapes unless the condition holds."""
    if not holds:
        raise ShapeError(f"{describe_shapes(factors)}, expected {expected}")


BUILDERS: dict[str, Callable[[SiteTensors], Update]] = {
    "LoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "Delta": _diff,
    "norm": _norm,
    "saved norm": _saved_norm,
    "IA3": ia3,
    "OFT": diag_oft,
    "GLoRA": glora,
}
