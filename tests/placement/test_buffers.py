"""Buffers that are donated and buffers that are not; bases in any byte order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import IA3, HiRA, LoRA, Rebase, Replace, Tokens
from jaxmix.placement.buffers import buffer_of, is_deleted

from ..messages import full_text

A, B = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)
LORA = Adapter({"q": LoRA(A, B, 1.0)})


def params() -> dict[str, Any]:
    """Two weights on the device."""
    return {name: jnp.arange(16.0).reshape(4, 4) for name in ("q.weight", "k.weight")}


@pytest.mark.parametrize(
    "use",
    [
        lambda p: jaxmix.compose(p, LORA, donate=True),
        lambda p: jaxmix.compose(p, LORA),
        lambda p: jaxmix.attach(p, LORA),
        lambda p: jaxmix.to_lora(Adapter({"q": Replace(np.ones((4, 4), np.float32))}), p),
        lambda p: Bank({"x": LORA}, p),
    ],
    ids=["donated", "composed", "attached", "decomposed", "banked"],
)
def test_using_donated_params_is_an_error(use: Any) -> None:
    """Using a donated buffer is an error that names the leaf."""
    base = params()
    jaxmix.compose(base, LORA, donate=True)
    assert is_deleted(base["q.weight"]) and not is_deleted(base["k.weight"])
    with pytest.raises(LayoutError) as caught:
        use(base)
    assert str(caught.value) == (
        "leaves that can't take an adapter, expected arrays of floats:\n  q: q.weight was donated "
        "(donate=True) or deleted; use the params that compose returned"
    )


def test_deleted_factor_is_an_error() -> None:
    a = jnp.asarray(A)
    adapter = Adapter({"q": LoRA(a, B, 1.0)})
    a.delete()
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            "  q: the buffer of a factor was donated or deleted; load it again"
        ),
    ):
        jaxmix.compose(params(), adapter)


def test_aliased_buffers_are_not_donated() -> None:
    """Another array in the same buffer, such as from `device_put`, keeps its contents."""
    base = params()
    base["k.weight"] = jax.device_put(base["q.weight"], jax.devices()[0])
    assert base["k.weight"] is not base["q.weight"]
    assert buffer_of(base["k.weight"]) == buffer_of(base["q.weight"])
    out = jaxmix.compose(base, LORA, donate=True)
    np.testing.assert_array_equal(out["k.weight"], params()["q.weight"])
    np.testing.assert_array_equal(out["q.weight"], params()["q.weight"] + B @ A)


@pytest.mark.parametrize("kind", [Replace, Rebase])
def test_leaf_that_is_also_a_factor(kind: Any) -> None:
    """A donated leaf that an update holds keeps its values."""
    base = params()
    adapter = Adapter({"q": kind(base["q.weight"])})
    out = jaxmix.compose(base, adapter, donate=True)
    np.testing.assert_array_equal(out["q.weight"], params()["q.weight"])
    (factor,) = jax.tree.leaves(adapter.updates)
    np.testing.assert_array_equal(factor, params()["q.weight"])


UPDATES = {"q": LoRA(A, B, 1.0), "k": Replace(B @ A + 1), "v": HiRA(A, B), "o": IA3(B[:, 0] + 1)}


def one_weight_per_update(mesh: Any = None) -> dict[str, Any]:
    """A weight for each of UPDATES, on one device or over a mesh."""
    weights = {f"{site}.weight": np.arange(16, dtype=np.float32).reshape(4, 4) for site in UPDATES}
    if mesh is None:
        return {name: jnp.asarray(weight) for name, weight in weights.items()}
    return jax.device_put(weights, NamedSharding(mesh, P("y", "x")))


@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit], ids=str)
def test_nothing_is_donated_by_default(kind: Any) -> None:
    """Leaves and factors stay valid, on one device and over several."""
    mesh = None if kind is None else jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    base, updates = one_weight_per_update(mesh), jax.tree.map(jnp.asarray, UPDATES)
    copies = jax.tree.map(np.array, (base, updates))
    compose = jax.jit(jaxmix.compose) if kind is AxisType.Explicit else jaxmix.compose
    outs = [jax.tree.map(np.array, compose(base, Adapter(updates, 0.7))) for _ in range(2)]
    assert not any(map(is_deleted, jax.tree.leaves((base, updates))))
    for expected, actual in ((copies, (base, updates)), (outs[0], outs[1])):
        same = jax.tree.map(np.array_equal, expected, jax.tree.map(np.asarray, actual))
        assert all(jax.tree.leaves(same))


def test_traced_programs_donate_nothing() -> None:
    """A program aliases buffers only if the caller donates the params to `jit`."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    programs = [
        jax.jit(jaxmix.compose, donate_argnums=donated)
        .lower(one_weight_per_update(mesh), Adapter(UPDATES))
        .compile()
        .as_text()
        for donated in ((), 0)
    ]
    assert ["input_output_alias" in (program or "") for program in programs] == [False, True]


def test_bases_in_another_byte_order() -> None:
    base = {"q.weight": np.asarray(params()["q.weight"]).astype(">f4")}
    out = jaxmix.compose(base, LORA)["q.weight"]
    np.testing.assert_array_equal(out, base["q.weight"] + B @ A)
    assert out.dtype == np.float32


def test_masked_base_is_refused() -> None:
    base = {"q.weight": np.ma.masked_array(np.ones((4, 4), np.float32), np.eye(4) > 0)}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            "  q: q.weight is a masked array; fill it: np.ma.filled(array, 0)"
        ),
    ):
        jaxmix.compose(base, LORA)


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("jitted", [False, True])
def test_replaced_values_are_not_read(bad: float, jitted: bool) -> None:
    """Replaced leaves and rows may be NaN; NaNs of other rows stay."""
    base = {
        "q.weight": np.full((4, 4), bad, np.float32),
        "q.bias": np.full(4, bad, np.float32),
        "e.weight": np.ones((4, 3), np.float32),
    }
    base["e.weight"][1:3] = bad
    saved = np.arange(16, dtype=np.float32).reshape(4, 4)
    updates = {
        "q": Replace(saved, saved[0]),
        "e": Tokens(saved[:1, :3], np.asarray([1], np.int32)),  # pyright: ignore[reportArgumentType]
    }
    compose = jax.jit(jaxmix.compose) if jitted else jaxmix.compose
    out = compose(base, Adapter(updates))
    np.testing.assert_array_equal(out["q.weight"], saved)
    np.testing.assert_array_equal(out["q.bias"], saved[0])
    np.testing.assert_array_equal(out["e.weight"][:2], [[1, 1, 1], saved[0, :3]])
    assert not np.isfinite(out["e.weight"][2]).any()
    interpolated = compose(base, 0.5 * Adapter(updates))
    assert not np.isfinite(interpolated["q.weight"]).any()


def test_strengths_have_gradients_at_one() -> None:
    """At strength 1 the base is multiplied by 0, but it contributes to the gradient."""
    base = {"q.weight": np.full((4, 4), 3.0, np.float32)}

    def total(strength: Any) -> Any:
        adapter = Adapter({"q": Replace(np.full((4, 4), 5.0, np.float32))}, strength)
        return jaxmix.compose(base, adapter)["q.weight"].sum()

    assert float(jax.grad(total)(1.0)) == 16 * 2.0


# ---------------------------------------------------------------- empty banks and empty batches


def test_empty_bank() -> None:
    """Every row is the base's, and members can be added later."""
    base, x = params(), jnp.ones((2, 4))

    def run(p: Any, x: Any) -> Any:
        return x @ p["q.weight"].T

    bank = Bank({}, base)
    for selection in ([None, None], np.asarray([-1, -1]), np.zeros((2, 0), np.float32), [{}, {}]):
        np.testing.assert_array_equal(bank(run)(base, x, selection), run(base, x))
    inside = jax.jit(lambda bank, p, x, selection: bank(run)(p, x, selection))
    np.testing.assert_array_equal(inside(bank, base, x, bank.who([None, None])), run(base, x))
    larger = bank.add("x", LORA)
    out = larger(run)(base, x, ["x", None])
    np.testing.assert_array_equal(out[1], run(base, x)[1])
    np.testing.assert_array_equal(out[0], run(base, x)[0] + 8)
    with pytest.raises(
        jaxmix.JaxmixError,
        match=full_text(
            "the bank has no members of these names:\n  'x' (rows 0)\nIt has no members."
        ),
    ):
        bank(run)(base, x, ["x", None])


def test_batch_without_rows() -> None:
    with pytest.raises(ShapeError) as caught:
        Bank({"x": LORA}, params())(lambda p, x: x)(params(), jnp.ones((0, 4)), [])
    assert str(caught.value) == "the batch has no rows, expected at least one."
