"""From an update to the tensors of one module, by LyCORIS's names, and files of such tensors."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.errors import (
    AdapterError,
    CheckpointError,
    JaxmixError,
    UnsupportedError,
    listing,
    option,
)
from jaxmix.families import Delta, LoHa, LoKr, LoRA, Normed, Together, Update
from jaxmix.untrusted.files import output_path

__all__ = ["module_tensors", "save_tensors", "with_plain_bias"]


def module_tensors(adapter: Adapter) -> dict[str, Factors]:
    """The tensors of every site, the strength multiplied into alpha.

    Args:
        adapter: the adapter, of LoRA, LoHa, LoKr, these with a norm, and plain differences.

    Returns:
        ``{site: {parameter: array}}``, as `lycoris.updates.build` takes them.

    Raises:
        AdapterError: if it is no adapter.
        UnsupportedError: if an update is of another family, or has no strength in such a file.

    Example:
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=2.0)
        >>> tensors = module_tensors(Adapter({"proj": ones}, strength=0.5))["proj"]
        >>> float(tensors["alpha"]), tensors["lora_down.weight"].shape
        (1.0, (1, 3))
    """
    if not isinstance(adapter, Adapter):
        raise AdapterError(
            f"got a {type(adapter).__name__}, expected one adapter. Make one of a mix: "
            "jaxmix.to_lora(mix, params)."
        )
    strength, found = float(adapter.strength), {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, update in adapter.updates.items():
        try:
            made = _tensors(update, strength)
            found[site] = {name: np.asarray(x, order="C") for name, x in made.items()}
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        raise UnsupportedError(
            f"{adapter.name}: updates that have no such form:"
            f"{listing(f'{site}: {error}' for site, error in failed)}\nMake a LoRA of them: "
            "jaxmix.to_lora(adapter, params)."
        )
    return found


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    force: bool,
) -> Path:
    """Writes a safetensors file beside its place, and renames it, so that it is never half there.

    Args:
        path: where to write.
        tensors: the arrays by key.
        metadata: the texts to go with them.
        force: whether to replace a file that stands there.

    Returns:
        The path.

    Raises:
        CheckpointError: if the place is taken, or can't be written.
    """
    place = output_path(path)
    if place.suffix != ".safetensors":
        raise CheckpointError(f"{place} is no name for the file, expected one in .safetensors.")
    if place.exists() and not force:
        raise CheckpointError(
            f"{place} exists. Give another name, or replace it: {option('force')}."
        )
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        # Its own dict: safetensors changes the one that it is given.
        save_file(dict(tensors), beside, metadata={"format": "pt", **metadata})
        os.replace(beside, place)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(f"{place} can't be written: {error}.") from error
    return place


def with_plain_bias(factors: Factors) -> Factors:
    """A LoRA's bias as a plain difference, ``diff_b``: the name that others than PEFT have for it.

    Args:
        factors: a module's tensors.

    Returns:
        The same, its scale multiplied into the bias.
    """
    if "lora_up.bias" not in factors:
        return factors
    rest = {key: x for key, x in factors.items() if key != "lora_up.bias"}
    scale = float(factors["alpha"]) / factors["lora_down.weight"].shape[0]
    return {**rest, "diff_b": _scaled(factors["lora_up.bias"], scale)}


def _tensors(update: Update, strength: float) -> Factors:
    """One update's."""
    match update:
        case LoRA():
            return _lora(update, strength)
        case LoHa():
            return _loha(update, strength)
        case LoKr():
            return _lokr(update, strength)
        case Normed(update=LoRA() | LoHa() | LoKr()):
            _check_whole(strength, "a norm")
            factors = _tensors(update.update, 1.0)
            if "dora_scale" in factors:
                raise UnsupportedError("a norm over a DoRA")
            return {**factors, "dora_scale": _norm(update.magnitude, factors, update.axis == "out")}
        case Delta():
            is_norm = update.weight is not None and np.ndim(update.weight) == 1
            keys = ("w_norm", "b_norm") if is_norm else ("diff", "diff_b")
            named = dict(zip(keys, (update.weight, update.bias), strict=True))
            return {key: _scaled(x, strength) for key, x in named.items() if x is not None}
        case Together(parts=(first, Delta(weight=None) as bias)):
            factors = {**_tensors(first, strength), **_tensors(bias, strength)}
            return factors
        case _:
            raise UnsupportedError(f"{update.family}, which has no form in LyCORIS's names here")


def _lora(update: LoRA, strength: float) -> Factors:
    """LoRA; a DoRA's magnitude as LyCORIS's norm by output, whose epsilon is float32's."""
    if update.transposed:
        raise UnsupportedError("a layer that PyTorch stores as (in, out)")
    a, b = np.asarray(update.a), np.asarray(update.b)
    rank, ones = a.shape[0], (1,) * len(update.kernel)
    scale, zero = _alpha(update.scale, strength, rank, a)
    factors = {
        "lora_down.weight": a.reshape(rank, -1, *update.kernel),
        "lora_up.weight": (np.zeros_like(b) if zero else b).reshape(-1, rank, *ones),
        "alpha": scale,
    }
    if update.bias is not None:
        factors["lora_up.bias"] = np.zeros_like(update.bias) if zero else np.asarray(update.bias)
    if update.magnitude is not None:
        if update.embedding:
            raise UnsupportedError("an embedding's DoRA, whose norm is another")
        _check_whole(strength, "DoRA")
        factors["dora_scale"] = _norm(update.magnitude, factors, True)
    return factors


def _loha(update: LoHa, strength: float) -> Factors:
    """LoHa."""
    b1 = np.asarray(update.b1)
    rank = np.shape(update.a1)[0]
    alpha, zero = _alpha(update.scale, strength, rank, b1)
    factors = {
        "hada_w1_a": np.zeros_like(b1) if zero else b1,
        "hada_w1_b": update.a1,
        "hada_w2_a": update.b2,
        "hada_w2_b": update.a2,
        "alpha": alpha,
    }
    cores = {"hada_t1": update.t1, "hada_t2": update.t2}
    return {**factors, **{name: core for name, core in cores.items() if core is not None}}


def _lokr(update: LoKr, strength: float) -> Factors:
    """LoKr; of two whole factors the first one takes the scale, which LyCORIS has as 1."""
    x, y = update.x, update.y
    if np.ndim(y[0]) == 3:
        raise UnsupportedError("PEFT's LoKr of a Conv1d, which scrambles the axes")
    ranks = {np.shape(side[1])[0] for side in (x, y) if len(side) == 2}
    if len(ranks) > 1:
        raise UnsupportedError("a LoKr with two ranks, of which a file has one alpha")
    first = np.asarray(x[0])
    if not ranks:
        alpha, first = np.asarray(1, _least(first)), _scaled(first, float(update.scale) * strength)
    else:
        alpha, zero = _alpha(update.scale, strength, ranks.pop(), first)
        first = np.zeros_like(first) if zero else first
    left = {"lokr_w1": first} if len(x) == 1 else {"lokr_w1_a": first, "lokr_w1_b": x[1]}
    right = {"lokr_w2": y[0]} if len(y) == 1 else {"lokr_w2_a": y[0], "lokr_w2_b": y[1]}
    core = {} if update.t2 is None else {"lokr_t2": update.t2}
    return {**left, **right, **core, "alpha": alpha}


def _alpha(scale: Any, strength: float, rank: int, like: Any) -> tuple[np.ndarray, bool]:
    """Alpha, and whether it would be 0, which means the rank to those who read it."""
    alpha = float(scale) * strength * rank
    return np.asarray(alpha or float(rank), _least(like)), alpha == 0


def _norm(magnitude: Any, factors: Factors, by_output: bool) -> np.ndarray:
    """The magnitude with axes of length one, as many as the weight has more."""
    points = next((len(np.shape(factors[key])) - 2 for key in _WITH_KERNEL if key in factors), 0)
    shape = (-1, 1, *(1,) * points) if by_output else (1, -1, *(1,) * points)
    return np.asarray(magnitude).reshape(shape)


# Whose axes are the weight's.
_WITH_KERNEL = ("lora_down.weight", "hada_t1", "lokr_t2", "lokr_w2")


def _check_whole(strength: float, what: str) -> None:
    if strength != 1:
        raise UnsupportedError(f"{what} at the strength {strength:g}, which the file can't say")


def _scaled(x: Any, factor: float) -> np.ndarray:
    """``factor · x``, in float32 at the least; x itself at 1."""
    x = np.asarray(x)
    return x if factor == 1 else (x.astype(np.float64) * factor).astype(_least(x))


def _least(x: Any) -> Any:
    return np.promote_types(np.asarray(x).dtype, np.float32)
