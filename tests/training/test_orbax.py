"""Training is saved and gone on with: Orbax over what `trainable` gives, or over adapters whole.

The recipe of docs/training.md, as a test: no code of jaxmix is needed for it. On eight devices.
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

from .made import PARAMS, bank, lora, oft, stepped, with_bias

OPTIMIZER = optax.adam(1e-2)


@jax.jit
def step(state: Any, whole: Any) -> Any:
    """A step of a loss."""

    def loss(values: Any) -> Any:
        params = jaxmix.compose(PARAMS, whole(values))
        return sum(jnp.sum(jnp.sin(x)) for x in params.values())

    slopes = jax.grad(loss)(state["values"])
    values, inner = stepped(OPTIMIZER, slopes, state["optimizer"], state["values"])
    return {"values": values, "optimizer": inner, "step": state["step"] + 1}


def train(state: Any, whole: Any, steps: int) -> Any:
    """Some steps."""
    for _ in range(steps):
        state = step(state, whole)
    return state


def start(mixed: Any) -> tuple[Any, Any]:
    """Values and optimizer's state, before the first step; and the way back to the mix."""
    values, whole = trainable(mixed)
    return {
        "values": values,
        "optimizer": OPTIMIZER.init(values),
        "step": jnp.zeros((), int),
    }, whole


def save(folder: Path, tree: Any) -> None:
    """Writes a tree."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, tree)


def restore(folder: Path, outline: Any) -> Any:
    """Reads a tree of these shapes, dtypes and shardings."""
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder, outline)


def same(ours: Any, theirs: Any) -> None:
    """Bit for bit, and of one structure."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


def test_training_goes_on(tmp_path: Path) -> None:
    """Three steps, saved and restored into shardings, and three more: as six at once."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    mixed = jaxmix.mix(lora(), oft(), bank())
    state, whole = start(mixed)
    save(tmp_path / "step3", train(state, whole, 3))

    # Elsewhere: adapters of the same shapes, made or read again; their numbers are not looked at.
    state, whole = start(jaxmix.mix(lora(), oft(), bank()))

    def outline(x: Any) -> Any:
        spec = P("x") if x.ndim == 2 and x.shape[0] % 2 == 0 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    outlines = jax.tree.map(outline, jax.eval_shape(lambda: state))
    again = restore(tmp_path / "step3", outlines)
    for leaf, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(outlines), strict=True):
        assert leaf.sharding == wanted.sharding and leaf.shape == wanted.shape
    assert again["step"] == 3
    assert not again["values"]["lora"]["updates"]["one"]["b"].sharding.is_fully_replicated
    straight = train(start(mixed)[0], whole, 6)
    for ours, theirs in zip(*map(jax.tree.leaves, (train(again, whole, 3), straight)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adapters_whole(tmp_path: Path) -> None:
    """A mix is a pytree: its structure and its adapters' names come from an outline of it."""
    mixed = jaxmix.mix(0.5 * lora(), with_bias())
    save(tmp_path / "mix", mixed)
    again = restore(tmp_path / "mix", jax.eval_shape(lambda: mixed))
    assert isinstance(again, jaxmix.Mix) and [part.name for part in again.parts] == [
        "lora",
        "biased",
    ]
    ours, theirs = jaxmix.compose(PARAMS, again), jaxmix.compose(PARAMS, mixed)
    same(ours, theirs)
