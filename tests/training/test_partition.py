"""`trainable` splits trained values from the rest: names, sharing, rebuilding, transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.families import SHiRA
from jaxmix.training import labels, trainable

from .samples import PARAMS, bank, loha, lora, normal, oft, stepped, with_bias


def shapes(values: Any) -> Any:
    """Returns the values' names and shapes."""
    return jax.tree.map(np.shape, values)


def loss(params: Any) -> Any:
    """Returns a scalar that depends on every leaf."""
    return sum(jnp.sum(jnp.sin(x)) for x in params.values())


def test_values_are_named_and_the_rest_is_kept() -> None:
    """Scales, strengths and integers are not trained; updates in a `Together` are numbered."""
    indices = np.array([[0, 1], [2, 3]], np.int32)
    shira = Adapter({"one": SHiRA(normal(0, 2), indices)}, 0.5, "shira")
    values, rebuild = trainable(jaxmix.mix(lora(), shira, with_bias()))
    assert shapes(values) == {
        "lora": {"updates": {"one": {"a": (2, 8), "b": (6, 2)}, "two": {"a": (2, 6), "b": (4, 2)}}},
        "shira": {"updates": {"one": {"values": (2,)}}},
        "biased": {
            "updates": {"one": {"parts": {"0": {"bias": (6,)}, "1": {"a": (2, 8), "b": (6, 2)}}}}
        },
    }
    rebuilt = rebuild(values)
    assert [part.name for part in rebuilt.parts] == ["lora", "shira", "biased"]
    assert rebuilt.parts[1].strength == 0.5 and rebuilt.parts[1].updates["one"].indices is indices
    for old, new in zip(
        jax.tree.leaves(jaxmix.mix(lora(), shira, with_bias())),
        jax.tree.leaves(rebuilt),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_single_adapter_is_returned_as_an_adapter() -> None:
    values, rebuild = trainable(0.5 * lora())
    rebuilt = rebuild(values)
    assert isinstance(rebuilt, Adapter) and rebuilt.name == "lora" and rebuilt.strength == 0.5


def test_only_selects_adapters() -> None:
    """`only` trains one adapter of a mix; the arrays of the others are the same objects."""
    mixed = jaxmix.mix(lora(), oft())
    values, rebuild = trainable(mixed, only=("oft",))
    assert shapes(values) == {"oft": {"updates": {"one": {"generator": (2, 6)}}}}
    rebuilt, original = (item.parts[0].updates["one"] for item in (rebuild(values), mixed))
    assert all(
        new is old for new, old in zip(*map(jax.tree.leaves, (rebuilt, original)), strict=True)
    )


def test_strengths_are_trained_on_request() -> None:
    """Strengths are arrays next to the updates, and not weakly typed."""
    values, rebuild = trainable(jaxmix.mix(0.5 * lora(), oft()), only=("lora",), strengths=True)
    assert values["lora"]["strength"] == 0.5
    assert not values["lora"]["strength"].weak_type
    values["lora"]["strength"] = jnp.asarray(2.0)
    assert [part.strength for part in rebuild(values).parts] == [2.0, 1.0]


def test_values_keep_the_dtype() -> None:
    """Values have the adapter's dtype, float64 only with x64."""
    for dtype, expected in ((jnp.bfloat16, jnp.bfloat16), (np.float64, np.float32)):
        cast = jax.tree.map(lambda x, d=dtype: np.asarray(x, d), lora())
        assert {x.dtype for x in jax.tree.leaves(trainable(cast)[0])} == {np.dtype(expected)}


# ---------------------------------------------------------------- shared arrays


def test_shared_array_is_one_value() -> None:
    """A shared array is one value, at its first site; its gradient is the sum over sites."""
    adapter = bank()
    values, rebuild = trainable(adapter)
    sites = values["bank"]["updates"]
    assert "bank" in sites["one"] and "bank" not in sites["two"]
    updates: Any = rebuild(values).updates
    assert updates["one"].bank is updates["two"].bank is sites["one"]["bank"]

    gradient = jax.jit(jax.grad(lambda values: loss(jaxmix.compose(PARAMS, rebuild(values)))))(
        values
    )

    def loss_by_site(first: Any, second: Any) -> Any:
        updates: Any = dict(adapter.updates)
        for site, array in (("one", first), ("two", second)):
            fields = {**vars(updates[site]), "bank": array}
            updates[site] = type(updates[site])(**fields)
        return loss(jaxmix.compose(PARAMS, Adapter(updates)))

    array: Any = adapter.updates["one"]
    separate = jax.grad(loss_by_site, argnums=(0, 1))(array.bank, array.bank)
    assert min(float(jnp.abs(x).max()) for x in separate) > 1e-3
    np.testing.assert_allclose(
        gradient["bank"]["updates"]["one"]["bank"], separate[0] + separate[1], rtol=1e-5, atol=1e-6
    )


def test_equal_arrays_are_separate_values() -> None:
    """Equal arrays, such as the zeros at the start of training, are separate values."""
    zeros = jax.tree.map(np.zeros_like, lora())
    assert len(jax.tree.leaves(trainable(zeros)[0])) == 4


# ---------------------------------------------------------------- transformations


def test_jitted_step_is_traced_once() -> None:
    """Frozen arrays are arguments, so another adapter of equal shapes uses the same program."""
    traces: list[int] = []
    optimizer = optax.adam(1e-1)

    @jax.jit
    def step(values: Any, state: Any, rebuild: Any, params: Any) -> Any:
        traces.append(1)
        value, gradient = jax.value_and_grad(lambda v: loss(jaxmix.compose(params, rebuild(v))))(
            values
        )
        return *stepped(optimizer, gradient, state, values), value

    step_losses = []
    for mixed in (jaxmix.mix(lora(), oft()), jaxmix.mix(0.3 * lora(), oft())):
        values, rebuild = trainable(mixed, only=["lora"])
        state, losses = optimizer.init(values), []
        for _ in range(5):
            values, state, value = step(values, state, rebuild, PARAMS)
            losses.append(float(value))
        step_losses.append(losses)
    assert len(traces) == 1
    assert (
        all(losses[-1] < losses[0] - 0.1 for losses in step_losses)
        and step_losses[0] != step_losses[1]
    )


def test_vmap_over_seeds() -> None:
    """`vmap` works over functions that make an adapter and functions that train it."""

    def values_of_seed(key: jax.Array) -> dict[str, Any]:
        adapter = bank()
        factor = jax.random.normal(key, (5, 2))
        updates: Any = {
            s: type(u)(**{**vars(u), "bank": factor}) for s, u in adapter.updates.items()
        }
        return trainable(Adapter(updates, name="bank"))[0]

    stack = jax.vmap(values_of_seed)(jax.random.split(jax.random.key(0), 3))
    rebuild = trainable(bank())[1]
    assert stack["bank"]["updates"]["one"]["bank"].shape == (3, 5, 2)
    assert "bank" not in stack["bank"]["updates"]["two"]
    losses_of = jax.jit(jax.vmap(lambda values: loss(jaxmix.compose(PARAMS, rebuild(values)))))
    separate_losses = [
        loss(jaxmix.compose(PARAMS, rebuild(jax.tree.map(lambda x, i=i: x[i], stack))))
        for i in range(3)
    ]
    np.testing.assert_allclose(losses_of(stack), np.array(separate_losses), rtol=1e-5)
    assert len({float(x) for x in separate_losses}) == 3


def test_optimizer_per_adapter() -> None:
    """The adapters' names serve as labels."""
    values, _ = trainable(jaxmix.mix(lora(), oft()))
    slow, fast = optax.sgd(1e-3), optax.sgd(1.0)
    optimizer = optax.multi_transform({"slow": slow, "fast": fast}, {"lora": "slow", "oft": "fast"})
    ones = jax.tree.map(jnp.ones_like, values)
    change: Any = optimizer.update(ones, optimizer.init(values), values)[0]
    rates = {name: {-float(x.min()) for x in jax.tree.leaves(c)} for name, c in change.items()}
    assert rates == {"lora": {float(np.float32(1e-3))}, "oft": {1.0}}


# ---------------------------------------------------------------- labels


def test_labels_freeze_the_rest() -> None:
    """Optax updates the labelled leaves of a whole mix and keeps the others bit for bit."""
    mixed = jaxmix.mix(lora(), oft())
    label_leaves = labels(mixed, only=("lora",))
    marks = label_leaves(mixed)
    assert jax.tree.structure(marks) == jax.tree.structure(mixed)
    assert [path for path, label in marked(marks) if label == "trained"] == [
        ".parts[0].updates['one'].a",
        ".parts[0].updates['one'].b",
        ".parts[0].updates['two'].a",
        ".parts[0].updates['two'].b",
    ]
    parts = {"trained": optax.adam(1e-1), "frozen": optax.set_to_zero()}
    masked = optax.masked(optax.adam(1e-1), labels(mixed, trained=True, frozen=False))
    gradient = jax.grad(lambda mixed: loss(jaxmix.compose(PARAMS, mixed)))(mixed)
    for optimizer, frozen_too in (
        (optax.multi_transform(parts, label_leaves), True),
        (masked, False),
    ):
        after, _ = stepped(optimizer, gradient, optimizer.init(mixed), mixed)
        change = jax.tree.map(lambda new, old: new - old, after, mixed)
        for (path, label), x in zip(marked(marks), jax.tree.leaves(change), strict=True):
            # `masked` passes on the gradients of leaves that it does not update.
            assert (label == "trained") == bool(np.any(x)) or not frozen_too, path


def marked(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths as strings."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]


# ---------------------------------------------------------------- errors


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no adapter": (
        lambda: trainable({"a": 1}),  # pyright: ignore[reportArgumentType]
        AdapterError,
        "trainable got a dict, expected an adapter or a mix. Load one with jaxmix.load, or make "
        "one with jaxmix.init.",
    ),
    "names": (
        lambda: trainable(jaxmix.mix(lora(), oft()), only=("oft", "x", "y")),
        AdapterError,
        "there is no adapter 'x', 'y', expected some of 'lora', 'oft'.",
    ),
    "nothing": (
        lambda: trainable(jaxmix.mix()),
        AdapterError,
        "the empty mix has no arrays to train, expected an adapter of a family with trained "
        "arrays. Pass strengths=True to train its strength.",
    ),
    "other values": (
        lambda: trainable(loha())[1]({"loha": {"updates": {"two": {"b1": 1, "x": 2}}}}),
        AdapterError,
        "the values do not belong to these adapters:\n"
        "  loha / updates / two / a1: missing\n"
        "  loha / updates / two / a2: missing\n"
        "  loha / updates / two / b2: missing\n"
        "  loha / updates / two / x: not expected\n"
        "Pass the values that jaxmix.trainable returned with this function, updated or not.",
    ),
    "labels of shared arrays": (
        lambda: labels(bank()),
        UnsupportedError,
        "arrays that several sites share can't be trained as separate leaves:\n"
        "  bank / updates / one / bank\n"
        "Train the values of jaxmix.trainable, in which each of them is a single value.",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_trainable_and_labels_errors(
    call: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    """The error states the wrong value, the expected one and the remedy."""
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message
