"""PEFT's SuperTuning, sparse alone or with a LoRA ("Supra")."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, Fields, Kind, Written
from jaxmix.converters.adapters.peft.patterns import number
from jaxmix.converters.adapters.peft.same import same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, check_ranks, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, NUMBER
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import SuperTuning

__all__ = ["KIND"]

_A, _B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"


def _build(file: File, site: str, factors: Factors) -> SuperTuning:
    """SuperTuning: values, where they go, and a LoRA where the config has a rank."""
    (values,) = need(factors, "supertuning_values")
    positions = factors.get("supertuning_indices")
    if positions is None:
        if file.config.values.get("save_precomputed_indices", True):
            raise CheckpointError(
                "supertuning_indices missing, but save_precomputed_indices is true"
            )
        positions = _found(file, site, values.size)
    if values.ndim != 1 or positions.shape != values.shape:
        raise ShapeError(f"{shapes(factors)}, expected values (n,) and indices (n,)")
    places: Any = positions.astype(np.int32)
    said = file.config.values
    rank, sparsity = said.get("r"), said.get("sparsity")
    if rank is None:
        if extra := [name for name in (_A, _B) if name in factors]:
            raise CheckpointError(f"{', '.join(extra)} there, but the config has no r")
        return SuperTuning(values, places, sparsity=sparsity)
    a, b = need(factors, _A, _B)
    check_ranks(factors, {_A: (2, 0), _B: (2, 1)}, rank)
    alpha = 2 * rank if said.get("lora_alpha") is None else said["lora_alpha"]
    return SuperTuning(values, places, alpha / rank, a, b, sparsity)


def _found(file: File, site: str, count: int) -> Any:
    """The positions of the largest weights of the base, or the smallest, in the order of torch's.

    Equal weights come in an order that only torch's own function knows.
    """
    torch = file.torch("supertuning_indices (found by torch.topk, whose order of ties is its own)")
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


def _write(updates: Mapping[str, Any]) -> Written:
    """With the positions, so that no base is asked."""
    unless(
        updates,
        lambda update: update.sparsity is not None,
        "PEFT computes how many entries a site has from the sparsity, which these do not have",
    )
    rank = same(updates, "r", lambda update: None if update.a is None else update.a.shape[0])
    fields: dict[str, Any] = {
        "r": rank,
        "save_precomputed_indices": True,
        "sparsity": same(updates, "sparsity", lambda update: update.sparsity),
    }
    if rank is not None:
        fields["lora_alpha"] = same(updates, "lora_alpha", lambda up: number(up.scale) * rank)
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.supertuning_values"] = update.values
        tensors[f"{site}.supertuning_indices"] = update.positions
        if rank is not None:
            tensors |= {f"{site}.{_A}": update.a, f"{site}.{_B}": update.b}
    return Written(fields, tensors)


KIND = Kind(
    Fields(
        {
            "lora_alpha": NUMBER._replace(is_needed=False),
            "r": COUNT._replace(is_needed=False),
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
