"""Gives LoRAs one rank and one scale, for readers that know only ``r`` and ``lora_alpha``.

PEFT's ``rank_pattern`` and ``alpha_pattern`` give individual sites a different rank and alpha.
llama.cpp and others read neither: at every site they divide ``lora_alpha`` by ``r`` or by the
tensor's rank. With one rank and one scale at all sites, every reader computes the same scale.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.errors import UnsupportedError, listing, option
from jaxmix.families import ExpertLoRA, LoRA, Update

__all__ = ["with_equal_ranks", "with_scale"]


def with_equal_ranks(updates: Mapping[str, Update], scale: float | None = None) -> dict[str, Any]:
    """Returns the updates with one rank and one scale; each product γBA is unchanged.

    The rank is the largest one: smaller factors are padded with zeros. The scale is that of most
    sites, unless it is given; their factors stay bit for bit the same. At the other sites the ratio
    of the scales is multiplied into B, with one rounding in B's dtype. The scale is never zero,
    which llama.cpp reads as a scale of 1.

    Args:
        updates: ``{site: update}``. If one is neither a LoRA nor an ExpertLoRA, all are returned
            unchanged: PEFT's KaSA truncates the base by its rank.
        scale: The scale that all of them get; None for the most frequent one.

    Returns:
        ``{site: update}``.

    Raises:
        UnsupportedError: If a scale makes a B too large for its dtype.

    Example:
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), 2.0)
        >>> other = LoRA(np.ones((2, 3)), np.ones((2, 2)), 1.0)
        >>> more = with_equal_ranks({"q": ones, "k": ones, "v": other})
        >>> more["q"].a.shape, more["v"].scale, more["v"].b.tolist()
        ((2, 3), 2.0, [[0.5, 0.5], [0.5, 0.5]])

    Source: ``get_scale`` in llama.cpp's ``src/llama-adapter.h``.
    """
    loras: dict[str, Any] = {
        site: update for site, update in updates.items() if isinstance(update, LoRA | ExpertLoRA)
    }
    if len(loras) < len(updates) or not loras:
        return dict(updates)
    rank = max(1, *(update.a.shape[-2] for update in loras.values()))
    if scale is None:
        counts = Counter(value for x in loras.values() if (value := as_float(x.scale)))
        scale = counts.most_common(1)[0][0] if counts else 1.0
    padded = {site: with_scale(_padded(update, rank), scale) for site, update in loras.items()}
    if lost := [
        f"{site}: {update.scale} · B in {np.asarray(update.b).dtype}"
        for site, update in loras.items()
        if not all(np.isfinite(x).all() for x in (padded[site].b, padded[site].a))
    ]:
        raise UnsupportedError(
            f"factors that become too large for their dtype where all sites get the scale "
            f"{scale:g}:{listing(lost)}\nCast the adapter to float32, or write the scales as "
            f"patterns in the config: {option('patterns')}."
        )
    return padded


def with_scale(update: Any, scale: float) -> Any:
    """Returns a LoRA with another scale; the ratio is multiplied into PEFT's B and the bias.

    Args:
        update: A `LoRA` or `ExpertLoRA`, B (out, r).
        scale: The new scale.

    Returns:
        The LoRA; the update itself if it already has that scale.

    Example:
        >>> with_scale(LoRA(np.ones((1, 3)), np.ones((2, 1)), 2.0), 1.0).b.tolist()
        [[2.0], [2.0]]
    """
    if (current := as_float(update.scale)) == scale:
        return update
    ratio = current / scale
    # The factors of an embedding are swapped: its A is PEFT's B.
    name = "a" if getattr(update, "embedding", False) else "b"
    changed = {name: _times(getattr(update, name), ratio)}
    if getattr(update, "bias", None) is not None:
        changed["bias"] = _times(update.bias, ratio)
    return replace(update, scale=scale, **changed)


def _times(array: Any, factor: float) -> np.ndarray:
    """Returns the product, rounded once to the array's dtype."""
    values = np.asarray(array)
    with np.errstate(over="ignore"):  # reported by site
        return (values.astype(np.float64) * factor).astype(values.dtype)


def _padded(update: Any, rank: int) -> Any:
    """Pads the factors with zeros to a larger rank."""
    if (more := rank - update.a.shape[-2]) == 0:
        return update
    a, b = np.asarray(update.a), np.asarray(update.b)
    rows = np.zeros((*a.shape[:-2], more, a.shape[-1]), a.dtype)
    columns = np.zeros((*b.shape[:-1], more), b.dtype)
    return replace(
        update, a=np.concatenate([a, rows], axis=-2), b=np.concatenate([b, columns], axis=-1)
    )
