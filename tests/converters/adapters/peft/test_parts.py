"""Groups of updates, as PEFT stores them."""

from typing import Any

import numpy as np
import pytest

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.parts import parts_in
from jaxmix.errors import UnsupportedError
from jaxmix.families import IA3, LoRA, Rebase, Replace, Together, Tokens

from ....messages import full_text

LORA: Any = LoRA(np.ones((1, 3)), np.ones((4, 1)), 0.5)
WEIGHT: Any = Replace(np.ones((4, 3)))
BIAS: Any = Replace(None, np.ones(4))
COPY: Any = Rebase(np.ones((4, 3)))
TOKENS: Any = Tokens(np.ones((1, 3)), np.array([2], np.int32))
SCALE: Any = IA3(np.ones(4))


def test_each_update_is_in_its_group() -> None:
    """Together's updates are separated, in PEFT's order."""
    updates = {"q": Together((COPY, BIAS, LORA)), "wte": Together((TOKENS, LORA)), "head": WEIGHT}
    parts = parts_in(Adapter(updates))
    assert parts.adapted == {"q": LORA, "wte": LORA}
    assert parts.saved == {"q": BIAS, "head": WEIGHT}
    assert (parts.rebased, parts.tokens) == ({"q": COPY}, {"wte": TOKENS})


@pytest.mark.parametrize(
    ("updates", "adapted", "saved"),
    [
        ({"wte": TOKENS}, {"wte": TOKENS}, {}),
        ({"norm": WEIGHT}, {"norm": WEIGHT}, {}),
        ({"wte": TOKENS, "norm": WEIGHT}, {"wte": TOKENS}, {"norm": WEIGHT}),
        ({}, {}, {}),
    ],
)
def test_updates_on_their_own_are_a_type_of_peft(
    updates: Any, adapted: dict[str, Any], saved: dict[str, Any]
) -> None:
    """TRAINABLE_TOKENS or LN_TUNING; tokens come first, and each update is in one group."""
    parts = parts_in(Adapter(updates))
    assert (parts.adapted, parts.saved, parts.tokens) == (adapted, saved, {})


def test_strength_is_multiplied_into_the_scale() -> None:
    """Of updates that add; the adapter itself does not change."""
    adapted: Any = parts_in(-3.0 * Adapter({"q": LORA})).adapted["q"]
    assert (adapted.scale, LORA.scale) == (-1.5, 0.5) and adapted.b is LORA.b


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            0.5 * Adapter({"q": SCALE, "k": LORA, "v": Together((COPY, LORA))}, name="style"),
            "style has strength 0.5, which PEFT does not have for:\n  q: IA3\n  v: Rebase\n"
            "Export it at strength 1, or convert it to a LoRA: jaxmix.to_lora(adapter, params).",
        ),
        (
            Adapter({"q": Together((LORA, LORA)), "k": Together((WEIGHT, LORA))}, name="style"),
            "style: PEFT has one update per site of an adapter, and this adapter has more:\n"
            "  q: rank 1 + rank 1\n  k: weight + rank 1\n"
            "Convert it to a LoRA: jaxmix.to_lora(adapter, params).",
        ),
        (
            Adapter({"q": Together((LORA, BIAS))}, name="style"),
            "style: PEFT applies copies of the base, saved leaves and tokens, in this order, "
            "before an adapter's own update, and these are in another order:\n  q: rank 1 + bias\n"
            "Convert it to a LoRA: jaxmix.to_lora(adapter, params).",
        ),
    ],
)
def test_updates_that_peft_can_not_store_are_listed(adapter: Adapter, message: str) -> None:
    """A strength without a scale, several updates of one group, and another order."""
    with pytest.raises(UnsupportedError, match=full_text(message)):
        parts_in(adapter)
