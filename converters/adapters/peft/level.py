"""LoRAs of one rank and one scale, which a reader that knows only ``r`` and ``lora_alpha`` needs.

PEFT's ``rank_pattern`` and ``alpha_pattern`` give single sites a rank and an alpha of their own.
llama.cpp and others read neither: they take ``lora_alpha`` for every site, over ``r`` or over the
tensor's own rank. Where all sites have one rank and one scale, each of them reads the same numbers.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.patterns import number
from jaxmix.errors import UnsupportedError, listing, option
from jaxmix.families import ExpertLoRA, LoRA, Update

__all__ = ["leveled", "rescaled"]


def leveled(updates: Mapping[str, Update], scale: float | None = None) -> dict[str, Any]:
    """The same updates with one rank and one scale: each product γBA stays what it is.

    The rank is the largest: the factors of the other sites are filled with zeros. The scale is the
    one that most sites have, unless it is given, so that theirs stay as they are, bit for bit. At
    the other sites the rest of the scale goes into B, one rounding in B's dtype. It is never zero,
    which llama.cpp takes for a scale of 1.

    Args:
        updates: ``{site: update}``. Updates other than LoRA and ExpertLoRA come back unchanged:
            PEFT's KaSA cuts the base off by its rank.
        scale: the scale that all of them get; None for the most frequent one.

    Returns:
        ``{site: update}``.

    Raises:
        UnsupportedError: if a scale makes a B too large for its dtype.

    Example:
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), 2.0)
        >>> more = leveled({"q": ones, "k": ones, "v": LoRA(np.ones((2, 3)), np.ones((2, 2)), 1.0)})
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
        counts = Counter(own for x in loras.values() if (own := number(x.scale)))
        scale = counts.most_common(1)[0][0] if counts else 1.0
    made = {site: rescaled(_padded(update, rank), scale) for site, update in loras.items()}
    if lost := [
        f"{site}: {update.scale} · B in {np.asarray(update.b).dtype}"
        for site, update in loras.items()
        if not all(np.isfinite(x).all() for x in (made[site].b, made[site].a))
    ]:
        raise UnsupportedError(
            f"scales that make a factor too large for its dtype, where all sites get the scale "
            f"{scale:g}:{listing(lost)}\nCast the adapter to float32, or write the scales beside "
            f"the factors: {option('patterns')}."
        )
    return made


def rescaled(update: Any, scale: float) -> Any:
    """A LoRA with another scale, the rest of its own multiplied into PEFT's B and the bias.

    Args:
        update: a `LoRA` or `ExpertLoRA`, B (out, r).
        scale: the scale that it is to have.

    Returns:
        The update itself where it has that scale.

    Example:
        >>> rescaled(LoRA(np.ones((1, 3)), np.ones((2, 1)), 2.0), 1.0).b.tolist()
        [[2.0], [2.0]]
    """
    if (own := number(update.scale)) == scale:
        return update
    rest = own / scale
    # An embedding's factors change places: its A holds what PEFT calls B.
    name = "a" if getattr(update, "embedding", False) else "b"
    changed = {name: _times(getattr(update, name), rest)}
    if getattr(update, "bias", None) is not None:
        changed["bias"] = _times(update.bias, rest)
    return replace(update, scale=scale, **changed)


def _times(array: Any, by: float) -> np.ndarray:
    """The product, rounded once to the array's own dtype."""
    own = np.asarray(array)
    with np.errstate(over="ignore"):  # what is too large is reported by site
        return (own.astype(np.float64) * by).astype(own.dtype)


def _padded(update: Any, rank: int) -> Any:
    """Factors of a larger rank, filled with zeros."""
    if (more := rank - update.a.shape[-2]) == 0:
        return update
    a, b = np.asarray(update.a), np.asarray(update.b)
    rows = np.zeros((*a.shape[:-2], more, a.shape[-1]), a.dtype)
    columns = np.zeros((*b.shape[:-1], more), b.dtype)
    return replace(
        update, a=np.concatenate([a, rows], axis=-2), b=np.concatenate([b, columns], axis=-1)
    )
