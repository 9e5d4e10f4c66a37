"""The order in which PEFT must load adapters, and the script that does it."""

import ast
from typing import Any

import numpy as np
import pytest

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.loading_script import ordered, script
from jaxmix.errors import UnsupportedError
from jaxmix.families import IA3, OFT, LoRA, SHiRA, Update

from ....messages import full_text

LORA: Any = LoRA(np.ones((1, 6)), np.ones((4, 1)), 0.5)
TURN: Any = OFT(np.ones((2, 3)))
ENTRIES: Any = SHiRA(np.ones(1), np.zeros((2, 1), np.int32))
SCALE: Any = IA3(np.ones(4))


def adapters(**updates: Update) -> list[Adapter]:
    """Adapters of one site."""
    return [Adapter({"q": update}, name=name) for name, update in updates.items()]


@pytest.mark.parametrize(
    ("parts", "order"),
    [
        (adapters(), ""),
        (adapters(a=SCALE), "a"),  # alone, any type
        (adapters(a=LORA, b=LORA), "ab"),
        (adapters(a=TURN, b=TURN, c=LORA, d=TURN), "bacd"),  # runs are reversed by PEFT
        (adapters(a=LORA, b=TURN, c=TURN), "acb"),
        (adapters(a=ENTRIES, b=LORA), "ab"),
    ],
)
def test_order_of_loading(parts: list[Adapter], order: str) -> None:
    """The order of application, except for runs of rotations."""
    assert "".join(part.name for part in ordered(parts)) == order


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (adapters(a=LORA, b=SCALE), "the type of 'b' with others"),
        (adapters(a=LORA, b=ENTRIES), "the type of 'b' with others"),
    ],
)
def test_mixes_without_an_order_are_refused(parts: list[Adapter], reason: str) -> None:
    """The error names the adapters, and three other ways."""
    message = full_text(
        f"PEFT's mixed model can't compute this mix: it does not support {reason}. Convert the mix "
        "to one LoRA, jaxmix.to_lora(mix, params), save it as a mix, jaxmix.save(mix, folder), or "
        "merge it, jaxmix.merge_checkpoint."
    )
    with pytest.raises(UnsupportedError, match=message):
        ordered(parts)


def test_script_is_valid_for_any_name() -> None:
    """Folders keep their order; quotes and other letters are escaped by Python's rules."""
    names = ["style", 'it\'s "b".1', "ä\\n"]
    tree = ast.parse(script(names))
    (folders,) = (node for node in tree.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(folders.value) == names
