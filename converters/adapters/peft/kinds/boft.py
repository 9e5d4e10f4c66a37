"""PEFT's BOFT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import one_of
from jaxmix.errors import ShapeError
from jaxmix.families import BOFT, Update
from jaxmix.families.boft import butterfly

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """BOFT, its form the tensors': a linear layer's boft_s is (out, 1), a convolution's (1, out).

    Where PEFT finds no CUDA it trains one factor, whatever boft_n_butterfly_factor says.
    """
    r, s = need(factors, "boft_R", "boft_s")
    if r.ndim != 4 or r.shape[2] != r.shape[3] or s.ndim != 2 or 1 not in s.shape or not r.size:
        raise ShapeError(f"{shapes(factors)}, expected (factors, blocks, b, b) and (out, 1)")
    count, blocks, size, _ = r.shape
    # Compared first: so large a power could be neither shown nor divided by in time.
    if count > 1 and (size % 2 or count > blocks.bit_length() or blocks % 2 ** (count - 1)):
        needed = str(2 ** (count - 1)) if count < 64 else f"2^{count - 1}"
        raise ShapeError(
            f"boft_R has shape {r.shape}: {count} butterfly factors need blocks of even size, and "
            f"{needed} of them or a multiple"
        )
    orders: Any = butterfly(count, blocks, size) if count > 1 else None
    return BOFT(r, s.reshape(-1), orders, convolution=s.shape[0] == 1 and s.size > 1)


def _write(updates: Mapping[str, Any]) -> Written:
    unless(updates, lambda update: not update.on_output, "PEFT's BOFT rotates inputs, not outputs")
    unless(updates, _is_butterfly, "PEFT's BOFT knows no other permutations than its butterfly's")
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.boft_R"] = update.generator
        tensors[f"{site}.boft_s"] = update.rescale.reshape(
            (1, -1) if update.convolution else (-1, 1)
        )
    fields = {
        **_blocks(updates),
        "boft_n_butterfly_factor": same(
            updates, "boft_n_butterfly_factor", lambda x: x.generator.shape[0]
        ),
    }
    return Written(fields, tensors)


def _blocks(updates: Mapping[str, Any]) -> dict[str, int]:
    """As many blocks at each site, or blocks of one size: PEFT's config says either."""
    counts = {update.generator.shape[1] for update in updates.values()}
    sizes = {update.generator.shape[2] for update in updates.values()}
    if len(sizes) > 1 and len(counts) == 1:
        return {"boft_block_num": counts.pop(), "boft_block_size": 0}
    size = same(updates, "boft_block_size", lambda update: update.generator.shape[2])
    return {"boft_block_num": 0, "boft_block_size": size}


def _is_butterfly(update: BOFT) -> bool:
    """Whether the permutations are PEFT's, and there is a rescaling, which PEFT always has."""
    count, blocks, size, _ = update.generator.shape
    if update.rescale is None:
        return False
    if update.orders is None:
        return count == 1
    return np.array_equal(np.asarray(update.orders), butterfly(count, blocks, size))


KIND = Kind(
    Fields(
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
