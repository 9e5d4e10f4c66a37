"""Pairs of factors in trees, and the library of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.qwix import qwix_adapter
from jaxmix.converters.adapters.qwix.pairs import is_factor, is_named_factor, pairs_of
from jaxmix.errors import CheckpointError

from ....messages import full_text
from .trees import drawn


def test_older_maxtext_names():
    """Older MaxText names factors ``lora_a.kernel``."""
    tree = {"q": {"lora_a.kernel": drawn(4, 2), "lora_b.kernel": drawn(2, 3)}}
    update: Any = qwix_adapter(tree, alpha=2).updates["q"]
    assert update.scale == 1.0


def test_numbered_layers_values_and_named_weights(tmp_path: Path):
    """Numbered layers, a trailing flax ``value`` and other weight names give the module's site."""
    tree = {
        "layers": {"0": {"q_einsum": {"w_lora_a": drawn(4, 2), "w_lora_b": drawn(2, 3, 5)}}},
        "moe": {"wi_lora_a": {"value": drawn(4, 2)}, "wi_lora_b": {"value": drawn(2, 3)}},
    }
    assert qwix_adapter(tree, alpha=1).sites == ("layers.0.q_einsum", "moe.wi")


@pytest.mark.parametrize(
    ("key", "is_named", "is_any"),
    [
        ("layers/q/kernel_lora_a", True, True),
        ("q.lora_b.kernel", True, True),
        ("q.lora_b", False, True),
        ("q/lora_a", False, True),
        ("lora_a", False, False),  # of no module
        ("_lora_a", False, False),  # of no leaf
        ("q.kernel_lora_c", False, False),
        ("q.lora_a.bias", False, False),
    ],
)
def test_factors_are_recognised_by_their_paths(key: str, is_named: bool, is_any: bool) -> None:
    """With dots or slashes."""
    assert (is_named_factor(key), is_factor(key)) == (is_named, is_any)


def both(leaf: str) -> dict[str, Any]:
    """Returns the two factors of a leaf."""
    return {f"{leaf}_a": drawn(4, 2), f"{leaf}_b": drawn(2, 3)}


@pytest.mark.parametrize(
    ("factors", "others", "expected"),
    [
        ({"mlp.linear_lora"}, (), {"mlp.linear": "qwix"}),
        # Next to an einsum of openpi the same name is that of its MLP.
        (
            {"mlp.linear_lora", "attn.q_einsum.lora"},
            (),
            {"mlp.linear": "openpi", "attn.q_einsum": "einsum"},
        ),
        ({"up.lora.lora"}, (), {"up": "flax"}),
        ({"up.lora.lora"}, ("up.kernel",), {"up": "flax"}),
        ({"up.lora.lora"}, ("down.kernel",), {"up.lora": "plain"}),
        ({"up.lora"}, ("params/up/base_module/kernel.value",), {"up": "flax"}),
        ({"up.lora"}, ("up.kernel",), {"up": "plain"}),
        ({"params.up.kernel_lora"}, (), {"up.kernel": "qwix"}),
    ],
)
def test_library_follows_from_names_and_other_leaves(
    factors: set[str], others: tuple[str, ...], expected: dict[str, str]
) -> None:
    """Each scales its factors differently."""
    tree = {key: array for name in factors for key, array in both(name).items()}
    pairs = pairs_of(tree, "the tree", others)
    assert {pair.leaf: pair.origin for pair in pairs} == expected
    for pair in pairs:
        np.testing.assert_array_equal(pair.b, drawn(2, 3))


def test_single_factors_are_listed() -> None:
    """The error lists each of them, and which factor is present."""
    tree = {**both("k.lora"), "q.kernel_lora_b": drawn(2, 3), "v.lora_a": drawn(4, 2)}
    message = full_text(
        "x: factors without their partner:\n  q.kernel: only lora_b\n  v: only lora_a"
    )
    with pytest.raises(CheckpointError, match=message):
        pairs_of(tree, "x")
