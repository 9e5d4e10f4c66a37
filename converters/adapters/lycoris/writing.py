"""Converts updates to tensors by LyCORIS's names, and writes files of such tensors."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.lycoris.updates import flat_inputs
from jaxmix.errors import (
    CheckpointError,
    JaxmixError,
    UnsupportedError,
    listing,
    option,
    to_lora_call,
)
from jaxmix.families import Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together, Update
from jaxmix.untrusted.files import output_path

__all__ = ["module_tensors", "save_tensors", "with_plain_bias"]


def module_tensors(adapter: Adapter, sites: Mapping[str, str] = {}) -> dict[str, SiteTensors]:
    """Returns the tensors of every site, with the strength multiplied into alpha.

    Args:
        adapter: An adapter of LoRA, LoHa, LoKr, these with a norm, Diag-OFT, and dense differences.
        sites: ``{site: original name}`` of renamed sites, for messages.

    Returns:
        ``{site: {parameter: array}}``, as `lycoris.updates.build` takes them.

    Raises:
        UnsupportedError: If an update is of another family, or the file can't express its strength.

    Example:
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=2.0)
        >>> tensors = module_tensors(Adapter({"proj": ones}, strength=0.5))["proj"]
        >>> float(tensors["alpha"]), tensors["lora_down.weight"].shape
        (1.0, (1, 3))
    """
    strength, modules = float(adapter.strength), {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, update in adapter.updates.items():
        try:
            module = _tensors(update, strength)
            modules[site] = {name: np.asarray(x, order="C") for name, x in module.items()}
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        raise UnsupportedError(
            f"{adapter.name}: updates for which the format has no form:"
            f"{listing(f'{sites.get(site, site)}: {error}' for site, error in failed)}\n"
            f"Convert them to a LoRA: {to_lora_call()}."
        )
    return modules


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    force: bool,
) -> Path:
    """Writes a safetensors file and renames it into place when it is complete.

    Args:
        path: The file to write.
        tensors: The arrays by key.
        metadata: The file's metadata.
        force: Whether to replace an existing file.

    Returns:
        The path.

    Raises:
        CheckpointError: If the path is taken, or can't be written.
    """
    place = output_path(path)
    if place.suffix != ".safetensors":
        raise CheckpointError(
            f"{place} is not a valid name for the file, expected one that ends in .safetensors."
        )
    if place.exists() and not force:
        raise CheckpointError(
            f"{place} exists. Choose another name, or replace it: {option('force')}."
        )
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        # A copy, since safetensors modifies the dict.
        save_file(dict(tensors), unfinished, metadata={"format": "pt", **metadata})
        os.replace(unfinished, place)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{place} can't be written: {error}.") from error
    return place


def with_plain_bias(factors: SiteTensors) -> SiteTensors:
    """Converts a LoRA's bias to a dense difference, ``diff_b``, its name outside of PEFT.

    Args:
        factors: A module's tensors.

    Returns:
        The tensors, with the scale multiplied into the bias.
    """
    if "lora_up.bias" not in factors:
        return factors
    others = {key: x for key, x in factors.items() if key != "lora_up.bias"}
    scale = float(factors["alpha"]) / factors["lora_down.weight"].shape[0]
    return {**others, "diff_b": _scaled(factors["lora_up.bias"], scale)}


def _tensors(update: Update, strength: float) -> SiteTensors:
    """The tensors of an update."""
    match update:
        case LoRA():
            return _lora(update, strength)
        case LoHa():
            return _loha(update, strength)
        case LoKr():
            return _lokr(update, strength)
        case Normed(update=LoRA() | LoHa() | LoKr()):
            _check_unit_strength(strength, "a norm")
            factors = _tensors(update.update, 1.0)
            if "dora_scale" in factors:
                raise UnsupportedError("a norm over a DoRA")
            points = _kernel_axes(factors)
            if update.axis == "in" and not points:
                points = _guessed_axes(flat_inputs(update.update) // update.magnitude.size)
            return {**factors, "dora_scale": _norm(update.magnitude, points, update.axis == "out")}
        case DiagOFT() if update.blocks is not None:
            return _diag_oft(update, strength)
        case Delta():
            is_norm = update.weight is not None and np.ndim(update.weight) == 1
            keys = ("w_norm", "b_norm") if is_norm else ("diff", "diff_b")
            named = dict(zip(keys, (update.weight, update.bias), strict=True))
            return {key: _scaled(x, strength) for key, x in named.items() if x is not None}
        case Together(parts=(first, Delta(weight=None) as bias)):
            factors = {**_tensors(first, strength), **_tensors(bias, strength)}
            return factors
        case _:
            raise UnsupportedError(f"{update.family}, which has no form in LyCORIS's names")


def _lora(update: LoRA, strength: float) -> SiteTensors:
    """LoRA; a DoRA's magnitude becomes LyCORIS's norm per output, with float32's epsilon."""
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
            raise UnsupportedError("an embedding's DoRA, whose norm differs")
        _check_unit_strength(strength, "DoRA")
        factors["dora_scale"] = _norm(update.magnitude, _kernel_axes(factors), True)
    return factors


def _loha(update: LoHa, strength: float) -> SiteTensors:
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


def _lokr(update: LoKr, strength: float) -> SiteTensors:
    """LoKr; of two dense factors the first one takes the scale, which LyCORIS fixes at 1."""
    x, y = update.x, update.y
    if np.ndim(y[0]) == 3:
        raise UnsupportedError("PEFT's LoKr of a Conv1d, which scrambles the axes")
    ranks = {np.shape(side[1])[0] for side in (x, y) if len(side) == 2}
    if len(ranks) > 1:
        raise UnsupportedError("a LoKr with two ranks, for which a file has only one alpha")
    first = np.asarray(x[0])
    if not ranks:
        alpha, first = (
            np.asarray(1, _float32_or_wider(first)),
            _scaled(first, float(update.scale) * strength),
        )
    else:
        alpha, zero = _alpha(update.scale, strength, ranks.pop(), first)
        first = np.zeros_like(first) if zero else first
    left = {"lokr_w1": first} if len(x) == 1 else {"lokr_w1_a": first, "lokr_w1_b": x[1]}
    right = {"lokr_w2": y[0]} if len(y) == 1 else {"lokr_w2_a": y[0], "lokr_w2_b": y[1]}
    core = {} if update.t2 is None else {"lokr_t2": update.t2}
    return {**left, **right, **core, "alpha": alpha}


def _diag_oft(update: DiagOFT, strength: float) -> SiteTensors:
    """Diag-OFT, whose strength and bound go into the blocks: an alpha of 0 means no bound."""
    if update.side != "out" or update.factor != 1 or update.by_block:
        raise UnsupportedError("a rotation that LyCORIS does not have: of inputs, or PEFT's")
    blocks = np.asarray(update.blocks)
    if update.bound is not None or strength != 1:
        wide = blocks.astype(np.float64)
        skew = wide - wide.swapaxes(1, 2)
        norm = float(np.linalg.norm(skew))
        bound = norm if update.bound is None else float(update.bound)
        # D = Q/2 has D − Dᵀ = Q.
        blocks = (skew * (strength * min(bound / norm if norm else 1.0, 1.0) / 2)).astype(
            _float32_or_wider(blocks)
        )
    factors = {"oft_blocks": blocks, "alpha": np.zeros((), _float32_or_wider(blocks))}
    if update.rescale is not None:
        rescale = np.asarray(update.rescale)
        if strength != 1:
            rescale = (1 - strength + strength * rescale).astype(rescale.dtype)
        factors["rescale"] = rescale[:, None]
    return factors


def _alpha(scale: Any, strength: float, rank: int, like: Any) -> tuple[np.ndarray, bool]:
    """Alpha, and whether it would be 0, which readers interpret as the rank."""
    alpha = float(scale) * strength * rank
    return np.asarray(alpha or float(rank), _float32_or_wider(like)), alpha == 0


# The factors whose axes are those of the weight.
_WITH_KERNEL = ("lora_down.weight", "hada_t1", "lokr_t2", "lokr_w2")


def _norm(magnitude: Any, points: int, by_output: bool) -> np.ndarray:
    """The magnitude, with axes of length one for the other axes of the weight."""
    shape = (-1, 1, *(1,) * points) if by_output else (1, -1, *(1,) * points)
    return np.asarray(magnitude).reshape(shape)


def _kernel_axes(factors: SiteTensors) -> int:
    """The number of axes of the kernel; 0 if the factors have it flat, or there is none."""
    return next((len(np.shape(factors[key])) - 2 for key in _WITH_KERNEL if key in factors), 0)


def _guessed_axes(size: int) -> int:
    """The number of axes of a kernel of which only the number of points is known.

    A square is taken for a Conv2d's kernel and a cube for a Conv3d's, as they mostly are.
    """
    if size <= 1:
        return 0
    return next((axes for axes in (2, 3) if round(size ** (1 / axes)) ** axes == size), 1)


def _check_unit_strength(strength: float, subject: str) -> None:
    if strength != 1:
        raise UnsupportedError(f"{subject} at strength {strength:g}, which the file can't express")


def _scaled(x: Any, factor: float) -> np.ndarray:
    """``factor · x``, in float32 or wider; x itself if the factor is 1."""
    x = np.asarray(x)
    return x if factor == 1 else (x.astype(np.float64) * factor).astype(_float32_or_wider(x))


def _float32_or_wider(x: Any) -> Any:
    return np.promote_types(np.asarray(x).dtype, np.float32)
