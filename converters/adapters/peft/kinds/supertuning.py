"""PEFT's SuperTuning, sparse or combined with a LoRA ("Supra")."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import (
    SiteTensors,
    check_ranks,
    describe_shapes,
    required,
)
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.converters.adapters.common.values import COUNT, FLAG, NUMBER
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import SuperTuning

__all__ = ["PEFT_TYPE"]

_A, _B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"


def _build(file: File, site: str, factors: SiteTensors) -> SuperTuning:
    """SuperTuning; values, their positions, and a LoRA if the config has a rank."""
    (values,) = required(factors, "supertuning_values")
    positions = factors.get("supertuning_indices")
    if positions is None:
        if file.config.values.get("save_precomputed_indices", True):
            raise CheckpointError(
                "supertuning_indices is missing, but save_precomputed_indices is true"
            )
        positions = _computed_positions(file, site, values.size)
    if values.ndim != 1 or positions.shape != values.shape:
        raise ShapeError(f"{describe_shapes(factors)}, expected values (n,) and indices (n,)")
    places: Any = positions.astype(np.int32)
    config = file.config.values
    rank, sparsity = config.get("r"), config.get("sparsity")
    if rank is None:
        if extra := [name for name in (_A, _B) if name in factors]:
            raise CheckpointError(f"{', '.join(extra)} found, but the config has no r")
        return SuperTuning(values, places, sparsity=sparsity)
    a, b = required(factors, _A, _B)
    check_ranks(factors, {_A: (2, 0), _B: (2, 1)}, rank)
    alpha = 2 * rank if config.get("lora_alpha") is None else config["lora_alpha"]
    return SuperTuning(values, places, alpha / rank, a, b, sparsity)


def _computed_positions(file: File, site: str, count: int) -> Any:
    """The positions of the largest or smallest weights of the base, in the order of torch.topk.

    Only torch's own function determines the order of equal weights.
    """
    torch = file.torch("supertuning_indices (computed by torch.topk, with its own order of ties)")
    weight = file.weight(site)
    if count > weight.size:
        raise ShapeError(
            f"supertuning_values has {count:,} numbers, expected at most {weight.size:,} from the "
            f"base's weight {weight.shape}"
        )
    # A copy: torch warns of an array that it may not write to.
    scores = torch.from_numpy(np.array(weight, np.promote_types(weight.dtype, np.float32)))
    if weight.dtype.name in ("bfloat16", "float16"):
        scores = scores.to(getattr(torch, weight.dtype.name))
    largest = bool(file.config.values.get("select_top", True))
    _, places = torch.topk(scores.abs().flatten(), k=count, largest=largest)
    return places.numpy()


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the positions, so PEFT needs no base."""
    refuse_unless(
        updates,
        lambda update: update.sparsity is not None,
        "PEFT computes the number of entries from the sparsity, which these do not have",
    )
    rank = equal_value(updates, "r", lambda update: None if update.a is None else update.a.shape[0])
    fields: dict[str, Any] = {
        "r": rank,
        "save_precomputed_indices": True,
        "sparsity": equal_value(updates, "sparsity", lambda update: update.sparsity),
    }
    if rank is not None:
        fields["lora_alpha"] = equal_value(
            updates, "lora_alpha", lambda up: as_float(up.scale) * rank
        )
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.supertuning_values"] = update.values
        tensors[f"{site}.supertuning_indices"] = update.positions
        if rank is not None:
            tensors |= {f"{site}.{_A}": update.a, f"{site}.{_B}": update.b}
    return PeftContent(fields, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "lora_alpha": NUMBER._replace(is_required=False),
            "r": COUNT._replace(is_required=False),
            "save_precomputed_indices": FLAG,
            "select_top": FLAG,
            "sparsity": NUMBER,
            **SAVED,
        },
        ABOUT | {"init_weights", "lora_dropout", "target_modules"},
    ),
    ("supertuning_values", "supertuning_indices", _A, _B),
    _build,
    _write,
    integers=("supertuning_indices",),
)
