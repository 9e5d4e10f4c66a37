"""PEFT's VB-LoRA, with all logits or only the largest."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, one_of
from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import VBLoRA

__all__ = ["PEFT_TYPE"]

_SIDES = ("vblora_logits_A", "vblora_logits_B")
_BANK = "vblora_vector_bank"


def _build(file: File, site: str, factors: SiteTensors) -> VBLoRA:
    """VB-LoRA at a site."""
    bank, config = file.shared.get(_BANK), file.config.values
    if bank is None:
        raise CheckpointError(f"{_BANK} is missing, which all sites share")
    if bank.shape != (config["num_vectors"], config["vector_length"]):
        expected = (config["num_vectors"], config["vector_length"])
        raise ShapeError(f"{_BANK} has shape {bank.shape}, expected {expected} from the config")
    a, b = (_side(file, name, axis, factors) for axis, name in enumerate(_SIDES))
    return VBLoRA(a, b, bank, config["topk"], file.transposed)


def _side(file: File, name: str, axis: int, factors: SiteTensors) -> tuple[Any, ...]:
    """The logits, or the softmaxes and indices of the largest."""
    config = file.config.values
    rank, topk = config["r"], config["topk"]
    if not file.config.flag("save_only_topk_weights"):
        (logits,) = required(factors, name)
        if logits.ndim != 3 or (logits.shape[axis], logits.shape[2]) != (
            rank,
            config["num_vectors"],
        ):
            raise ShapeError(
                f"{name} has shape {logits.shape}, expected three axes with r = {rank} and "
                f"num_vectors = {config['num_vectors']}"
            )
        if topk > logits.shape[2]:
            raise ShapeError(
                f"topk is {topk}, but {name} has {logits.shape[2]} logits per subvector"
            )
        return (logits,)
    weights, places = required(factors, f"{name}_topk_weights", f"{name}_topk_indices")
    is_fit = weights.ndim == places.ndim == 3 and weights.shape[axis] == rank
    if not is_fit or places.shape != (*weights.shape[:2], topk) or weights.shape[2] != topk - 1:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected three axes with r = {rank} and topk = {topk}, "
            f"and topk − 1 for the weights"
        )
    if places.size and not 0 <= places.min() <= places.max() < config["num_vectors"]:
        raise CheckpointError(f"{name}_topk_indices are not all below {config['num_vectors']}")
    return weights, places


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes all logits if every site has them, otherwise only the largest."""
    only_topk = equal_value(updates, "save_only_topk_weights", lambda update: len(update.a) == 2)
    bank = same_array(updates, _BANK, lambda update: update.bank)
    ends = ("_topk_weights", "_topk_indices") if only_topk else ("",)
    # PEFT loads only float32 weights.
    tensors = {
        f"{site}.{name}{end}": np.asarray(array, np.float32) if end == ends[0] != "" else array
        for site, update in updates.items()
        for name, side in zip(_SIDES, (update.a, update.b), strict=True)
        for end, array in zip(ends, side, strict=True)
    }
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "num_vectors": bank.shape[0],
        "r": equal_value(updates, "r", lambda update: update.a[0].shape[0]),
        "save_only_topk_weights": only_topk,
        "topk": equal_value(updates, "topk", lambda update: update.topk),
        "vector_length": bank.shape[1],
    }
    return PeftContent(fields, tensors, {_BANK: bank})


PEFT_TYPE = PeftType(
    ConfigFields(
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
