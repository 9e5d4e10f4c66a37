"""Recipes of a checkpoint's tensors, planned from shapes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.converters.checkpoints.huggingface import Stored, read_checkpoint
from jaxmix.converters.merging.planning import plan_recipes, precision, resolve_layout
from jaxmix.families import Delta, LoRA
from jaxmix.mixing import mix
from jaxmix.placement.layout import Layout, Rule

from ..bases import OUT, WIDTH

Q = "model.layers.{}.q_proj"


def lora(i: int, strength: float) -> jaxmix.Adapter:
    """A LoRA of one layer's projection."""
    update: Any = LoRA(np.ones((2, WIDTH), np.float32), np.ones((OUT, 2), np.float32), 1.0)
    return strength * jaxmix.Adapter({Q.format(i): update}, name=f"{i} at {strength}")


def test_recipes_follow_the_files(base: Path) -> None:
    """In the files' order, not the adapters'; a tensor's updates are in order of application."""
    checkpoint = read_checkpoint(base)
    mixed = mix(lora(1, 0.5), lora(0, 2.0), lora(1, 3.0))
    layout, _ = resolve_layout(None)
    recipes = plan_recipes(checkpoint, mixed, layout)
    names = [f"{Q.format(i)}.weight" for i in (0, 1)]
    assert list(recipes) == [name for name in checkpoint.tensors if name in names]
    (share,) = recipes[names[1]].shares
    assert [float(strength) for strength, _ in share.chain] == [0.5, 3.0]


def test_bias_alone_leaves_the_weight(base: Path) -> None:
    """Only the tensors that change have recipes."""
    bias: Any = Delta(bias=np.ones(OUT, np.float32))
    recipes = plan_recipes(
        read_checkpoint(base), mix(jaxmix.Adapter({Q.format(0): bias})), resolve_layout(None)[0]
    )
    (name,) = recipes
    assert name == f"{Q.format(0)}.bias"
    assert (recipes[name].shares[0].form.part, recipes[name].shares[0].base) == ("bias", None)


def test_names_leave_ties_to_the_config() -> None:
    """Only layouts by name find ties there; another layout is used as it is."""
    for layout in (None, "flax"):
        table, finds_ties = resolve_layout(layout)
        assert finds_ties and not table.by_name
        assert resolve_layout(table) == (table, False)
    own = Layout("own", (Rule(r"(.+)", r"\1.w"),))
    assert resolve_layout(own) == (own, False)


@pytest.mark.parametrize(("dtype", "expected"), [("F64", np.float64), ("F32", np.float32)])
def test_float64_is_kept_for_one_wide_tensor(dtype: str, expected: Any) -> None:
    """Within the context only."""
    tensors = [Stored("x", name, (2,), Path("x"), 0, 8) for name in ("BF16", dtype)]
    with precision(tensors):
        assert jax.dtypes.canonicalize_dtype(np.float64) == expected
    with precision([]):
        assert jax.dtypes.canonicalize_dtype(np.float64) == np.float32
