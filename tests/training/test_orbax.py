"""Orbax saves and resumes training, from the values of `trainable` or from whole adapters.

This is the recipe of docs/training.md, on eight devices; jaxmix needs no code for it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix.training import trainable

from .samples import PARAMS, bank, lora, oft, stepped, with_bias

OPTIMIZER = optax.adam(1e-2)


@jax.jit
def step(state: Any, rebuild: Any) -> Any:
    """Applies one optimizer step."""

    def loss(values: Any) -> Any:
        params = jaxmix.compose(PARAMS, rebuild(values))
        return sum(jnp.sum(jnp.sin(x)) for x in params.values())

    gradients = jax.grad(loss)(state["values"])
    values, optimizer_state = stepped(OPTIMIZER, gradients, state["optimizer"], state["values"])
    return {"values": values, "optimizer": optimizer_state, "step": state["step"] + 1}


def train(state: Any, rebuild: Any, steps: int) -> Any:
    """Applies this number of steps."""
    for _ in range(steps):
        state = step(state, rebuild)
    return state


def initial_state(mixed: Any) -> tuple[Any, Any]:
    """Returns the state before the first step, and the function from values to the mix."""
    values, rebuild = trainable(mixed)
    return {
        "values": values,
        "optimizer": OPTIMIZER.init(values),
        "step": jnp.zeros((), int),
    }, rebuild


def save(folder: Path, tree: Any) -> None:
    """Writes a tree."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, tree)


def restore(folder: Path, outline: Any) -> Any:
    """Reads a tree of these shapes, dtypes and shardings."""
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, outline)


def assert_same(actual: Any, expected: Any) -> None:
    """Asserts equal structures, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(left, right)


def test_training_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    """Three steps, a restore with shardings and three more steps equal six steps."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    mixed = jaxmix.mix(lora(), oft(), bank())
    state, rebuild = initial_state(mixed)
    save(tmp_path / "step3", train(state, rebuild, 3))

    # The resuming process needs adapters only for the shapes; their values are replaced.
    state, rebuild = initial_state(jaxmix.mix(lora(), oft(), bank()))

    def outline(x: Any) -> Any:
        spec = P("x") if x.ndim == 2 and x.shape[0] % 2 == 0 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    outlines = jax.tree.map(outline, jax.eval_shape(lambda: state))
    restored = restore(tmp_path / "step3", outlines)
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(outlines), strict=True):
        assert leaf.sharding == expected.sharding and leaf.shape == expected.shape
    assert restored["step"] == 3
    assert not restored["values"]["lora"]["updates"]["one"]["b"].sharding.is_fully_replicated
    uninterrupted = train(initial_state(mixed)[0], rebuild, 6)
    for actual, expected in zip(
        *map(jax.tree.leaves, (train(restored, rebuild, 3), uninterrupted)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_mix_is_saved_and_restored(tmp_path: Path) -> None:
    """A mix is a pytree; an outline gives its structure and the adapters' names."""
    mixed = jaxmix.mix(0.5 * lora(), with_bias())
    save(tmp_path / "mix", mixed)
    restored = restore(tmp_path / "mix", jax.eval_shape(lambda: mixed))
    assert isinstance(restored, jaxmix.Mix) and [part.name for part in restored.parts] == [
        "lora",
        "biased",
    ]
    actual, expected = jaxmix.compose(PARAMS, restored), jaxmix.compose(PARAMS, mixed)
    assert_same(actual, expected)
