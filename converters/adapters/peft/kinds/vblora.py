"""PEFT's VB-LoRA, with all logits or with the largest alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, one_of
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import VBLoRA

__all__ = ["KIND"]

_SIDES = ("vblora_logits_A", "vblora_logits_B")
_BANK = "vblora_vector_bank"


def _build(file: File, site: str, factors: Factors) -> VBLoRA:
    """VB-LoRA at a site."""
    bank, said = file.shared.get(_BANK), file.config.values
    if bank is None:
        raise CheckpointError(f"{_BANK} missing, which all sites share")
    if bank.shape != (said["num_vectors"], said["vector_length"]):
        expected = (said["num_vectors"], said["vector_length"])
        raise ShapeError(f"{_BANK} has shape {bank.shape}, expected {expected} from the config")
    a, b = (_side(file, name, axis, factors) for axis, name in enumerate(_SIDES))
    return VBLoRA(a, b, bank, said["topk"], file.transposed)


def _side(file: File, name: str, axis: int, factors: Factors) -> tuple[Any, ...]:
    """The logits, or the softmaxes and the numbers of the largest."""
    said = file.config.values
    rank, topk = said["r"], said["topk"]
    if not file.config.flag("save_only_topk_weights"):
        (logits,) = need(factors, name)
        if logits.ndim != 3 or (logits.shape[axis], logits.shape[2]) != (rank, said["num_vectors"]):
            raise ShapeError(
                f"{name} has shape {logits.shape}, expected three axes with r = {rank} and "
                f"num_vectors = {said['num_vectors']}"
            )
        if topk > logits.shape[2]:
            raise ShapeError(f"topk is {topk}, but {name} has {logits.shape[2]} logits a stretch")
        return (logits,)
    weights, places = need(factors, f"{name}_topk_weights", f"{name}_topk_indices")
    is_fit = weights.ndim == places.ndim == 3 and weights.shape[axis] == rank
    if not is_fit or places.shape != (*weights.shape[:2], topk) or weights.shape[2] != topk - 1:
        raise ShapeError(
            f"{shapes(factors)}, expected three axes with r = {rank} and topk = {topk}, one less "
            "for the weights"
        )
    if places.size and not 0 <= places.min() <= places.max() < said["num_vectors"]:
        raise CheckpointError(f"{name}_topk_indices are not all below {said['num_vectors']}")
    return weights, places


def _write(updates: Mapping[str, Any]) -> Written:
    """Whole logits if all sites have them, else the largest alone."""
    only_topk = same(updates, "save_only_topk_weights", lambda update: len(update.a) == 2)
    bank = same_array(updates, _BANK, lambda update: update.bank)
    ends = ("_topk_weights", "_topk_indices") if only_topk else ("",)
    # PEFT reads the weights back into an array of float32, and no others.
    tensors = {
        f"{site}.{name}{end}": np.asarray(array, np.float32) if end == ends[0] != "" else array
        for site, update in updates.items()
        for name, side in zip(_SIDES, (update.a, update.b), strict=True)
        for end, array in zip(ends, side, strict=True)
    }
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "num_vectors": bank.shape[0],
        "r": same(updates, "r", lambda update: update.a[0].shape[0]),
        "save_only_topk_weights": only_topk,
        "topk": same(updates, "topk", lambda update: update.topk),
        "vector_length": bank.shape[1],
    }
    return Written(fields, tensors, {_BANK: bank})


KIND = Kind(
    Fields(
        {
            "bias": one_of("none", "all", "vblora_only"),
            "fan_in_fan_out": FLAG,
            "num_vectors": COUNT,
            "r": COUNT,
            "save_only_topk_weights": FLAG,
            "topk": COUNT,
            "vector_length": COUNT,
            **SAVED,
        },
        ABOUT | WHERE | {"init_logits_std", "init_vector_bank_bound", "vblora_dropout"},
    ),
    (
        *_SIDES,
        *(f"{name}_topk_weights" for name in _SIDES),
        *(f"{name}_topk_indices" for name in _SIDES),
    ),
    _build,
    _write,
    shared=(_BANK,),
    integers=tuple(f"{name}_topk_indices" for name in _SIDES),
)
