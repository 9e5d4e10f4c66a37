"""Updates as LyCORIS's tensors, and the file of them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.lycoris.updates import build
from jaxmix.converters.adapters.lycoris.writing import (
    module_tensors,
    save_tensors,
    with_plain_bias,
)
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import IA3, Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together

from ....messages import full_text

A, B = np.arange(6.0).reshape(2, 3) + 1, np.arange(8.0).reshape(4, 2) + 1
LORA: Any = LoRA(A, B, 0.5)
NORM: Any = np.arange(4.0) + 1
UPDATES: dict[str, Any] = {
    "lora": LORA,
    "convolution": LoRA(np.ones((2, 12)), B, 0.5, kernel=(2, 2)),
    "loha": LoHa(B, A, 2 * B, 3 * A, 0.25),
    "lokr": LoKr((np.ones((2, 3)),), (B, A), 0.5),
    "bias": Together((LORA, Delta(bias=NORM))),
    "norm per output": Normed(LORA, NORM, float(np.finfo(np.float32).eps), axis="out"),
    "norm per input": Normed(LORA, NORM[:3], float(np.finfo(np.float32).eps), axis="in"),
    "turn": DiagOFT(np.arange(18.0).reshape(2, 3, 3), NORM.repeat(2)[:6]),
    "difference": Delta(B @ A, NORM),
}


@pytest.mark.parametrize("name", UPDATES)
def test_reading_is_the_inverse_of_writing(name: str) -> None:
    """At strength 1, bit for bit."""
    update = UPDATES[name]
    again = build(module_tensors(Adapter({"q": update}))["q"])
    assert jax.tree.structure(again) == jax.tree.structure(update)
    for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(update), strict=True):
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))


def test_strength_zero_is_not_the_rank() -> None:
    """An alpha of 0 means the rank to all readers, so a factor is zero instead."""
    updates = {"q": LORA, "k": UPDATES["loha"], "v": UPDATES["lokr"]}
    for tensors in module_tensors(0.0 * Adapter(updates)).values():
        assert float(tensors["alpha"]) == 2.0
        assert any(not x.any() for key, x in tensors.items() if key != "alpha")


def test_refused_updates_are_listed_by_their_original_names() -> None:
    """A family without a form, and what no alpha can express."""
    updates: dict[str, Any] = {
        "a": IA3(NORM),
        "b": UPDATES["norm per output"],
        "c": LoKr((np.ones((2, 1)), np.ones((1, 3))), (B, A), 0.5),
        "d": LoRA(A, B, 0.5, transposed=True),
        "good": LORA,
    }
    message = full_text(
        "style: updates for which the format has no form:\n"
        "  x.a: IA3, which has no form in LyCORIS's names\n"
        "  b: a norm at strength 0.5, which the file can't express\n"
        "  c: a LoKr with two ranks, for which a file has only one alpha\n"
        "  d: a layer that PyTorch stores as (in, out)\n"
        "Convert them to a LoRA: jaxmix.to_lora(adapter, params)."
    )
    with pytest.raises(UnsupportedError, match=message):
        module_tensors(0.5 * Adapter(updates, name="style"), {"a": "x.a"})


def test_bias_outside_of_peft_is_not_scaled_by_readers() -> None:
    """The scale, alpha over rank, is multiplied in; other tensors are the same."""
    factors: Any = {"lora_down.weight": A, "alpha": np.asarray(1.0), "lora_up.bias": NORM}
    plain = with_plain_bias(factors)
    np.testing.assert_array_equal(plain.pop("diff_b"), NORM / 2)
    assert plain.keys() == {"lora_down.weight", "alpha"}
    assert with_plain_bias(plain) is plain


def test_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    """A name that readers would not recognize is refused; the caller's dict does not change."""
    path, tensors = tmp_path / "x.safetensors", {"a": A}
    assert save_tensors(path, tensors, {"made by": "hand"}, force=False) == path
    message = f"{path} exists. Choose another name, or replace it: force=True."
    with pytest.raises(CheckpointError, match=full_text(message)):
        save_tensors(path, {}, {}, force=False)
    save_tensors(path, {"b": B}, {}, force=True)
    assert list(load_file(path)) == ["b"] and list(tensors) == ["a"]
    message = (
        f"{tmp_path}/x.bin is not a valid name for the file, expected one that ends in "
        ".safetensors."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        save_tensors(tmp_path / "x.bin", tensors, {}, force=True)
    assert list(tmp_path.iterdir()) == [path]
