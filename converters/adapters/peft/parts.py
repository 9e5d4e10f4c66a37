"""Groups an adapter's updates by how PEFT stores them."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxmix.adapter import Adapter
from jaxmix.errors import UnsupportedError, listing, to_lora_call
from jaxmix.families import Rebase, Replace, Tokens, Update, parts_of

__all__ = ["Parts", "parts_in"]

# Updates that PEFT applies to the base, in this order, before an adapter's own update.
_FIRST = (Rebase, Replace, Tokens)


@dataclass
class Parts:
    """An adapter's updates by site.

    Args:
        adapted: Updates of the adapter's type.
        saved: Fully trained modules and biases.
        rebased: Copies of the base's weights.
        tokens: Rows of embeddings.
    """

    adapted: dict[str, Update] = field(default_factory=dict)
    saved: dict[str, Replace] = field(default_factory=dict)
    rebased: dict[str, Rebase] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)


def parts_in(adapter: Adapter) -> Parts:
    """Groups an adapter's updates, with its strength multiplied in.

    Args:
        adapter: The adapter.

    Returns:
        The updates by group.

    Raises:
        UnsupportedError: If PEFT has no strength for an update, can't store several at a site, or
            applies them in another order.
    """
    out = Parts()
    weak: list[str] = []
    twice: list[str] = []
    late: list[str] = []
    for site, update in adapter.updates.items():
        # PEFT either saves a module whole or adapts it.
        last, is_mixed = 0, len(parts_of(update)) > 1
        for part in parts_of(update):
            strong = _with_strength(part, adapter.strength)
            if strong is None:
                weak.append(f"{site}: {part.family}")
                continue
            at = next((i for i, kind in enumerate(_FIRST) if isinstance(part, kind)), len(_FIRST))
            group: Any = (out.rebased, out.saved, out.tokens, out.adapted)[at]
            if site in group or (is_mixed and isinstance(part, Replace) and part.has_weight):
                twice.append(f"{site}: {update.size()}")
            elif at < last:
                late.append(f"{site}: {update.size()}")
            group[site], last = strong, at
    if weak:
        raise UnsupportedError(
            f"{adapter.name} has strength {adapter.strength}, which PEFT does not have for:"
            f"{listing(weak)}\nExport it at strength 1, or convert it to a LoRA: {to_lora_call()}."
        )
    if twice:
        raise UnsupportedError(
            f"{adapter.name}: PEFT has one update per site of an adapter, and this adapter has "
            f"more:{listing(twice)}\nConvert it to a LoRA: {to_lora_call()}."
        )
    if late:
        raise UnsupportedError(
            f"{adapter.name}: PEFT applies copies of the base, saved leaves and tokens, in this "
            f"order, before an adapter's own update, and these are in another order:"
            f"{listing(late)}\nConvert it to a LoRA: {to_lora_call()}."
        )
    # On their own, these have separate types in PEFT: TRAINABLE_TOKENS and LN_TUNING.
    if not out.adapted and out.tokens:
        return replace(out, adapted=dict(out.tokens), tokens={})
    if not out.adapted and out.saved:
        return replace(out, adapted=dict(out.saved), saved={})
    return out


def _with_strength(update: Update, strength: Any) -> Update | None:
    """The update with a strength multiplied in, or None if it has no scale."""
    if not isinstance(strength, Tracer) and np.all(np.asarray(strength) == 1.0):
        return update
    is_additive = not update.reads_base and not update.is_base_side
    if not is_additive or "scale" not in {f.name for f in fields(update)}:  # pyright: ignore
        return None
    return replace(update, scale=strength * update.scale)  # pyright: ignore
