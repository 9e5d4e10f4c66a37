"""Chains applied to the leaves of a tree: which leaves are new, and in which order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.apply import dense
from jaxmix.apply.dense import apply
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA, Replace
from jaxmix.families.base import Chain
from jaxmix.placement.buffers import is_deleted
from jaxmix.placement.layout import Layout, Rule

from ..messages import full_text

ONES = np.ones((2, 3), np.float32)
LORA: Chain = ((0.5, LoRA(ONES[:1], 2 * ONES[:, :1], 1.0)),)


def test_untouched_leaves_are_the_same_objects() -> None:
    """The tree has the same structure, and the argument is not changed."""
    params = {"a": {"weight": ONES, "bias": ONES[:, 0]}, "b.weight": ONES, "other": None}
    out = apply(params, {"a": LORA})
    assert out["a"]["bias"] is params["a"]["bias"] and out["b.weight"] is ONES
    assert jax.tree.structure(out) == jax.tree.structure(params)
    np.testing.assert_array_equal(out["a"]["weight"], ONES + 1)
    assert params["a"]["weight"] is ONES


def test_without_chains_params_may_be_anything_but_a_path() -> None:
    """A path would be mistaken for a model that was read."""
    params = object()
    assert apply(params, {}) is params
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the params are the path 'base', expected a pytree of weights: a dict of arrays, an "
            "nnx.Module or its state, an Equinox module. Read a checkpoint with "
            "jaxmix.models.read_tensors(folder), or merge it on disk with "
            "jaxmix.merge_checkpoint(folder, adapters, out)."
        ),
    ):
        apply("base", {})


@pytest.mark.parametrize("donate", [False, True])
def test_bias_reads_the_weight_before_it_changes(donate: bool) -> None:
    """DoRA's map of a bias reads the base's weight, whose buffer may be donated afterwards."""
    weight = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    magnitude = np.array([10.0, 1.0], np.float32)
    zeros = np.zeros((2, 1), np.float32)
    biased: Any = LoRA(zeros.T, zeros, 1.0, bias=np.array([1.0, 4.0], np.float32))
    dora = LoRA(zeros.T, zeros, 1.0, magnitude=magnitude)
    out = apply(
        {"a.weight": weight, "a.bias": jnp.zeros(2)},
        {"a": ((1.0, biased), (1.0, dora))},
        donate=donate,
    )
    np.testing.assert_allclose(out["a.weight"], [[6.0, 8.0], [0.0, 1.0]])
    np.testing.assert_allclose(out["a.bias"], [2.0, 2.0])
    assert is_deleted(weight) is donate


def test_several_sites_of_one_leaf_are_written_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second site on the leaf is a new one, whose buffer is reused."""
    donated: list[bool] = []
    real = dense.apply_to_leaf

    def spied(*args: Any, **how: Any) -> Any:
        donated.append(how["donate"])
        return real(*args, **how)

    monkeypatch.setattr(dense, "apply_to_leaf", spied)
    leaf = np.zeros((3, 2, 3), np.float32)
    layout = Layout("mine", (Rule(r"a(\d)", "w", index=r"\1"),))
    chains: dict[str, Chain] = {f"a{i}": ((1.0, Replace((i + 1) * ONES)),) for i in (0, 2)}
    out = apply({"w": leaf}, chains, layout=layout)["w"]
    np.testing.assert_array_equal(out, np.stack([ONES, 0 * ONES, 3 * ONES]))
    assert donated == [False, True] and not leaf.any()
