"""From the tensors of one module to an update: one function a family of LyCORIS.

Orientation: lora_down (r, in, *k), lora_up (out, r, 1 …), weight (out, in, *k).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from jaxmix.converters.adapters.lycoris.keys import BESIDE, FAMILIES
from jaxmix.converters.adapters.lycoris.turns import diag_oft, glora, ia3, scale_of
from jaxmix.converters.adapters.peft.shapes import Factor, Factors, need, shapes
from jaxmix.converters.adapters.peft.tensors import FLOATS
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, listing
from jaxmix.families import Delta, LoHa, LoKr, LoRA, Normed, Together, Update

__all__ = ["build", "build_all"]

# LyCORIS adds the smallest step of the magnitude's dtype, which is float32 whatever the file's.
NORM_EPS = float(np.finfo(np.float32).eps)


def build_all(sites: Mapping[str, Factors], where: str) -> dict[str, Update]:
    """An update for each site; what fails is gathered and raised at once, by its first kind.

    Args:
        sites: ``{site: {parameter: array}}``.
        where: the file, for messages.

    Returns:
        ``{site: update}``.

    Raises:
        JaxmixError: of the first failure's kind, with all of them listed.
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
            f"{where}: tensors that make no update:"
            f"{listing(f'{site}: {error}' for site, error in failed)}\nWas the file edited, or cut?"
        ) from failed[0][1]
    return updates


def build(factors: Factors) -> Update:
    """The update of one module.

    Args:
        factors: ``{parameter: array}``, by the names of `jaxmix.converters.adapters.lycoris.keys`.

    Returns:
        The update: of a family, with its norm and its bias where the file has them.

    Raises:
        CheckpointError: if tensors are missing, or belong to more than one family.
        ShapeError: if they disagree.
        UnsupportedError: if they are of a form that jaxmix does not know.

    Example:
        >>> down, up = np.ones((1, 3)), np.ones((2, 1))
        >>> build({"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(2.0)}).scale
        2.0

    Source: LyCORIS, ``lycoris/modules``.
    """
    found = [name for name, own in FAMILIES.items() if any(key in factors for key in own)]
    if len(found) > 1:
        raise CheckpointError(f"{shapes(factors)}: factors of {' and '.join(found)} at one module")
    if wrong := [name for name, x in factors.items() if x.dtype not in FLOATS and x.ndim]:
        raise CheckpointError(f"{', '.join(wrong)} of integers in {shapes(factors)}")
    used = dict(factors)
    norm, bias = used.pop("dora_scale", None), used.pop("diff_b", None)
    if not found and bias is None:
        raise CheckpointError(f"{shapes(factors)} without the factors they belong to")
    parts: list[Update] = []
    if found:
        family = found[0]
        belonging = (*FAMILIES[family], *BESIDE.get(family, ()))
        if lost := [name for name in used if name not in belonging]:
            said = f"{', '.join(lost)} beside {family}, where it means nothing"
            raise CheckpointError(f"{shapes(factors)}: {said}")
        update = BUILDERS[family](used)
        parts.append(update if norm is None else _normed(update, norm))
    elif norm is not None:
        raise CheckpointError(f"{shapes(factors)}: dora_scale without an update to norm")
    if bias is not None:
        if bias.ndim != 1 or not bias.size:
            raise ShapeError(f"diff_b has shape {bias.shape}, expected (out,)")
        if parts and isinstance(parts[0], Delta) and parts[0].bias is None:
            return replace(parts[0], bias=bias)
        parts.append(Delta(bias=bias))
    return parts[0] if len(parts) == 1 else Together(tuple(parts))


def _lora(factors: Factors) -> Update:
    """LoRA, LoCon and DyLoRA; a Tucker core is multiplied into A."""
    down, up = need(factors, "lora_down.weight", "lora_up.weight")
    mid, bias = factors.get("lora_mid.weight"), factors.get("lora_up.bias")
    rank = down.shape[0] if down.ndim else 0
    _check(factors, down.ndim in (2, 3, 4, 5) and down.size > 0, "lora_down of 2 to 5 axes")
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


def _loha(factors: Factors) -> Update:
    """LoHa, as PEFT has it."""
    b1, a1, b2, a2 = need(factors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    t1, t2 = factors.get("hada_t1"), factors.get("hada_t2")
    if (t1 is None) != (t2 is None):
        raise CheckpointError(f"one of hada_t1 and hada_t2 is missing beside {shapes(factors)}")
    _check(factors, all(x.ndim == 2 and x.size for x in (b1, a1, b2, a2)), "matrices")
    axis, rank = (1, a1.shape[0]) if t1 is None else (0, a1.shape[0])
    ranks = {b1.shape[axis], b2.shape[axis], a1.shape[0], a2.shape[0]}
    _check(factors, ranks == {rank} and a1.shape == a2.shape and b1.shape == b2.shape, "one rank")
    if t1 is not None and t2 is not None:
        fits = t1.shape == t2.shape and t1.shape[:2] == (rank, rank) and t1.ndim > 2 and t1.size
        _check(factors, bool(fits), f"cores ({rank}, {rank}, kernel …)")
    kernel = () if t1 is None else t1.shape[2:]
    return LoHa(b1, a1, b2, a2, scale_of(factors, rank), t1, t2, kernel=kernel)


def _lokr(factors: Factors) -> Update:
    """LoKr, its form told from the keys that are there; two whole factors have scale 1."""
    x: tuple[Factor, ...] = _side(factors, "lokr_w1")
    y: tuple[Factor, ...] = _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    if core is not None and len(y) == 1:
        raise CheckpointError(f"lokr_t2 beside {shapes(factors)}: expected lokr_w2_a and lokr_w2_b")
    _check(factors, all(a.ndim > 1 and a.size for a in (*x, *y)), "matrices")
    _check(factors, all(a.ndim == 2 for a in (*x, *y[:-1])) or len(y) == 1, "matrices")
    _check(factors, x[0].ndim == 2, "lokr_w1 (rows, columns)")
    ranks = {side[1].shape[0] for side in (x, y) if len(side) == 2}
    if len(x) == 2:
        _check(factors, x[0].shape[1] == x[1].shape[0], "one rank in lokr_w1_a and lokr_w1_b")
    if len(y) == 2:
        a, b = y
        _check(factors, a.shape[0 if core is not None else 1] == b.shape[0], "one rank in lokr_w2")
        # Some write (r, in, *k). A Conv1d's, three axes, PEFT's formula would scramble.
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
        # By multiplying it out, for the same reason.
        whole = np.einsum("ijk,ip,jq->pqk", *map(_wide, (core, *y)))
        flat: Factor = _narrow(whole.reshape(whole.shape[0], -1), core)
        y, core = (flat,), None
    return LoKr(x, y, scale, core)


def _side(factors: Factors, name: str) -> tuple[Factor, ...]:
    """A Kronecker factor: whole, or as a pair."""
    there = tuple(key for key in (name, f"{name}_a", f"{name}_b") if key in factors)
    if there in ((name,), (f"{name}_a", f"{name}_b")):
        return tuple(factors[key] for key in there)
    raise CheckpointError(f"{shapes(factors)}: expected {name}, or {name}_a and {name}_b")


def _diff(factors: Factors) -> Update:
    """A whole difference."""
    diff = factors["diff"]
    _check(factors, diff.ndim > 0 and diff.size > 0, "diff (out, in, kernel …)")
    return Delta(weight=diff)


def _norm(factors: Factors) -> Update:
    """What training added to a norm's weight and bias."""
    (weight,) = need(factors, "w_norm")
    bias = factors.get("b_norm")
    _check(factors, weight.ndim == 1 and (bias is None or bias.shape == weight.shape), "vectors")
    return Delta(weight=weight, bias=bias)


def _normed(update: Update, magnitude: Factor) -> Update:
    """DoRA's epilogue: by output where the magnitude is (out, 1 …), by input where (1, in, 1 …)."""
    if not isinstance(update, LoRA | LoHa | LoKr) or getattr(update, "magnitude", None) is not None:
        raise CheckpointError(f"dora_scale beside {update.family}, expected LoRA, LoHa or LoKr")
    shape = magnitude.shape
    if magnitude.ndim < 2 or magnitude.size == 0 or math.prod(shape[2:]) != 1 or 1 not in shape[:2]:
        raise ShapeError(f"dora_scale has shape {shape}, expected (out, 1 …) or (1, in, 1 …)")
    by_output = shape[1] == 1 and (shape[0] > 1 or _rows(update) == 1)
    # A magnitude has as many axes as the weight: one of two axes is of a layer without a kernel.
    if not by_output and len(shape) == 2 and shape[1] != (inputs := _inputs(update)):
        expected = f"({_rows(update)}, 1) or (1, {inputs})"
        raise ShapeError(f"dora_scale has shape {shape}, expected {expected}")
    return Normed(update, magnitude.reshape(-1), NORM_EPS, axis="out" if by_output else "in")


def _rows(update: Update) -> int:
    """How many outputs the update has."""
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


def _inputs(update: Update) -> int:
    """How many inputs the update has, if its layer has no kernel."""
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
    """``Σⱼ mid[i, j, k] down[j, n]`` as (r, in·k), in float32 at the least."""
    inner = np.einsum("ij...,jn->in...", _wide(mid), _wide(down))
    return _narrow(inner.reshape(inner.shape[0], -1), mid)


def _wide(x: Factor) -> np.ndarray:
    return np.asarray(x, np.float64)


def _narrow(product: np.ndarray, like: Factor) -> np.ndarray:
    """A product of factors, rounded once: to float32, or not at all where they are float64."""
    return product.astype(np.promote_types(like.dtype, np.float32))


def _check(factors: Factors, holds: bool, expected: str) -> None:
    """Raises what the shapes should be, unless they are."""
    if not holds:
        raise ShapeError(f"{shapes(factors)}, expected {expected}")


BUILDERS: dict[str, Callable[[Factors], Update]] = {
    "LoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "Delta": _diff,
    "norm": _norm,
    "IA3": ia3,
    "OFT": diag_oft,
    "GLoRA": glora,
}
