"""PEFT's BOFT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import ShapeError
from jaxmix.families import BOFT, Update
from jaxmix.families.boft import butterfly

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """BOFT; boft_s is (out, 1) for a linear layer, (1, out) for a convolution.

    The tensors determine the number of factors: without CUDA, PEFT trains one factor whatever
    boft_n_butterfly_factor is.
    """
    r, s = required(factors, "boft_R", "boft_s")
    if r.ndim != 4 or r.shape[2] != r.shape[3] or s.ndim != 2 or 1 not in s.shape or not r.size:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected (factors, blocks, b, b) and (out, 1)"
        )
    count, blocks, size, _ = r.shape
    # Compared first, since a power this large could neither be shown nor divided by in time.
    if count > 1 and (size % 2 or count > blocks.bit_length() or blocks % 2 ** (count - 1)):
        needed = str(2 ** (count - 1)) if count < 64 else f"2^{count - 1}"
        raise ShapeError(
            f"boft_R has shape {r.shape}: {count} butterfly factors need blocks of even size, "
            f"and the number of blocks must be a multiple of {needed}"
        )
    orders: Any = butterfly(count, blocks, size) if count > 1 else None
    return BOFT(r, s.reshape(-1), orders, convolution=s.shape[0] == 1 and s.size > 1)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    refuse_unless(
        updates, lambda update: not update.on_output, "PEFT's BOFT rotates inputs, not outputs"
    )
    refuse_unless(updates, _is_butterfly, "PEFT's BOFT has only the permutations of its butterfly")
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.boft_R"] = update.generator
        tensors[f"{site}.boft_s"] = update.rescale.reshape(
            (1, -1) if update.convolution else (-1, 1)
        )
    fields = {
        **_blocks(updates),
        "boft_n_butterfly_factor": equal_value(
            updates, "boft_n_butterfly_factor", lambda x: x.generator.shape[0]
        ),
    }
    return PeftContent(fields, tensors)


def _blocks(updates: Mapping[str, Any]) -> dict[str, int]:
    """The number of blocks or their size: PEFT's config has one of them for all sites."""
    counts = {update.generator.shape[1] for update in updates.values()}
    sizes = {update.generator.shape[2] for update in updates.values()}
    if len(sizes) > 1 and len(counts) == 1:
        return {"boft_block_num": counts.pop(), "boft_block_size": 0}
    size = equal_value(updates, "boft_block_size", lambda update: update.generator.shape[2])
    return {"boft_block_num": 0, "boft_block_size": size}


def _is_butterfly(update: BOFT) -> bool:
    """Whether the permutations are those of PEFT, with the rescaling that PEFT always has."""
    count, blocks, size, _ = update.generator.shape
    if update.rescale is None:
        return False
    if update.orders is None:
        return count == 1
    return np.array_equal(np.asarray(update.orders), butterfly(count, blocks, size))


PEFT_TYPE = PeftType(
    ConfigFields(
        {"bias": one_of("none", "all", "boft_only"), **SAVED},
        ABOUT
        | WHERE
        | frozenset(
            "boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor fan_in_fan_out "
            "init_weights".split()
        ),
    ),
    ("boft_R", "boft_s"),
    _build,
    _write,
)
