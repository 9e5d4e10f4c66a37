"""PEFT's LoKr."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import (
    Factor,
    SiteTensors,
    check_cores,
    check_ranks,
    describe_shapes,
)
from jaxmix.converters.adapters.common.site_values import ranks_and_alphas
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kinds.loha import LYCORIS, LYCORIS_HARMLESS
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing, to_lora_call
from jaxmix.families import LoKr, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """LoKr; its form follows from the keys."""
    rank = file.config.by_site("rank_pattern", "r", site)
    x, y = _side(factors, "lokr_w1"), _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    if core is not None and len(y) == 1:
        raise CheckpointError(f"{describe_shapes(factors)}: lokr_t2 needs lokr_w2_a and lokr_w2_b")
    rows = 1 if core is None else 0
    axes = {"lokr_w1_a": (2, 1), "lokr_w1_b": (2, 0), "lokr_w2_a": (2, rows), "lokr_w2_b": (2, 0)}
    check_ranks(factors, axes, rank)
    check_cores(factors, ("lokr_t2",), rank)
    for name, side, most in (("lokr_w1", x, 2), ("lokr_w2", y, 5)):
        if len(side) == 1 and not 2 <= side[0].ndim <= most:
            raise ShapeError(f"{name} has shape {side[0].shape}, expected (rows, columns)")
    scale = file.config.by_site("alpha_pattern", "alpha", site) / rank
    return LoKr(x, y, scale, core)


def _side(factors: SiteTensors, name: str) -> tuple[Factor, ...]:
    """A Kronecker factor: dense, or as a pair."""
    dense, pair = factors.get(name), [factors.get(name + end) for end in ("_a", "_b")]
    present = [factor is not None for factor in pair]
    if dense is not None and not any(present):
        return (dense,)
    if dense is None and all(present):
        return pair[0], pair[1]
    raise CheckpointError(f"{describe_shapes(factors)}: expected {name}, or {name}_a and {name}_b")


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Searches for one rank and one decompose_factor with which PEFT has these forms.

    A pair is multiplied and written dense where PEFT would have a dense factor.
    """
    sizes = {site: _sizes(update) for site, update in updates.items()}
    factor = _factor(updates, sizes)
    if factor is None:
        lines = (f"{site}: {x} ⊗ {y}" for site, (x, y) in sizes.items())
        raise UnsupportedError(
            f"PEFT has no decompose_factor for Kronecker factors of these shapes:"
            f"{listing(lines)}\nExport it as a LoRA: {to_lora_call()}."
        )
    are_pairs = all(len(update.x) == 2 for update in updates.values())
    tensors, ranks = {}, {}
    for site, update in updates.items():
        (x, y), forms = sizes[site], {}
        pairs = [side for side in (update.x, update.y) if len(side) == 2]
        rank = min((len(side[1]) for side in pairs), default=max(y))
        for name, side, size, core in (
            ("lokr_w1", update.x, x, None),
            ("lokr_w2", update.y, y, update.t2),
        ):
            is_pair = rank < max(size) / 2 and (name == "lokr_w2" or are_pairs)
            if len(side) == 2 and not is_pair:
                side, core = (_product(side, core),), None
            if len(side) == 1 and is_pair:
                raise UnsupportedError(
                    f"{site}: PEFT would write {name} as a pair. Export it as a "
                    f"LoRA: {to_lora_call()}."
                )
            names = (name,) if len(side) == 1 else (f"{name}_a", f"{name}_b")
            forms |= dict(zip(names, side, strict=True))
            if core is not None:
                forms["lokr_t2"] = core
        tensors |= {f"{site}.{name}": array for name, array in forms.items()}
        ranks[site] = rank
    fields = ranks_and_alphas(ranks, {site: update.scale for site, update in updates.items()})
    fields |= {"decompose_both": are_pairs, "decompose_factor": factor}
    has_core = any(update.t2 is not None for update in updates.values())
    return PeftContent({**fields, "use_effective_conv2d": has_core}, tensors)


def _product(side: tuple[Factor, ...], core: Factor | None) -> Factor:
    """Returns a pair's product."""
    return side[0] @ side[1] if core is None else np.einsum("ij...,ip,jq->pq...", core, *side)


def _sizes(update: LoKr) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns of X and of Y, without a kernel."""
    (rows, cols), (k, n) = ((side[0].shape[0], side[-1].shape[1]) for side in (update.x, update.y))
    if update.t2 is not None:
        k = update.y[0].shape[1]
    return (rows, cols), (k, n)


def _factor(updates: Mapping[str, LoKr], sizes: Mapping[str, Any]) -> int | None:
    """Returns PEFT's ``decompose_factor`` that leads to all of these sizes, or None.

    A pair's columns are channels times the points of a kernel, whose number a pair does not show. A
    common number of points for all sites is tried first.
    """
    unknown = {site for site, up in updates.items() if len(up.y) == 2 and up.t2 is None}
    factors = [-1, *sorted({size for x, _ in sizes.values() for size in x})]
    columns = math.gcd(*(sizes[site][1][1] for site in unknown))
    for points in [n for n in range(1, columns + 1) if columns % n == 0] + [0]:
        for factor in factors:
            if all(
                _makes(factor, x, y, points if s in unknown else 1) for s, (x, y) in sizes.items()
            ):
                return factor
    return None


def _makes(factor: int, x: tuple[int, int], y: tuple[int, int], points: int) -> bool:
    """Whether PEFT has these sizes for a kernel with that many points; 0 means any number."""
    channels = [n for n in range(1, y[1] + 1) if y[1] % n == 0] if not points else [y[1] // points]
    rows = _halves(x[0] * y[0], factor) == (x[0], y[0])
    return rows and any(_halves(x[1] * n, factor) == (x[1], n) for n in channels)


def _halves(size: int, factor: int) -> tuple[int, int]:
    """Splits a size into two factors as PEFT does: near the factor, or near the square root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    best = (1, size)
    for low in range(2, int(size**0.5) + 1):
        if size % low == 0 and (factor < 0 or low <= factor) and low <= size // low:
            best = (low, size // low)
    return best


PEFT_TYPE = PeftType(
    ConfigFields(
        dict(LYCORIS),
        ABOUT
        | WHERE
        | LYCORIS_HARMLESS
        | frozenset("decompose_both decompose_factor rank_dropout_scale".split()),
    ),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    _build,
    _write,
)
