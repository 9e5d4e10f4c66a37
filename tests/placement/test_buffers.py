"""Deleted and donated buffers; numbers that are not finite; bases of any byte order."""

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

A, B = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)
LORA = Adapter({"q": LoRA(A, B, 1.0)})


def params() -> dict[str, Any]:
    """Returns two weights on the device."""
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
def test_deleted_buffer_is_refused(use: Any) -> None:
    """Using a deleted buffer raises an error that says so."""
    base = params()
    jaxmix.compose(base, LORA, donate=True)
    assert is_deleted(base["q.weight"]) and not is_deleted(base["k.weight"])
    with pytest.raises(LayoutError) as caught:
        use(base)
    assert str(caught.value) == (
        "leaves that can't take an adapter, expected arrays of floats:\n  q: q.weight was given up "
        "(donate=True, or delete()); use the params that compose returned"
    )


def test_deleted_factor_is_refused() -> None:
    a = jnp.asarray(A)
    adapter = Adapter({"q": LoRA(a, B, 1.0)})
    a.delete()
    with pytest.raises(LayoutError, match="q: the buffer of a factor was given up, by donation or"):
        jaxmix.compose(params(), adapter)


def test_alias_is_not_donated() -> None:
    """Another array in the same buffer, as `device_put` makes it, keeps its contents."""
    base = params()
    base["k.weight"] = jax.device_put(base["q.weight"], jax.devices()[0])
    assert base["k.weight"] is not base["q.weight"]
    assert buffer_of(base["k.weight"]) == buffer_of(base["q.weight"])
    out = jaxmix.compose(base, LORA, donate=True)
    np.testing.assert_array_equal(out["k.weight"], params()["q.weight"])
    np.testing.assert_array_equal(out["q.weight"], params()["q.weight"] + B @ A)


@pytest.mark.parametrize("kind", [Replace, Rebase])
def test_leaf_that_is_also_a_factor_is_not_donated(kind: Any) -> None:
    """It would be read while it is written."""
    base = params()
    adapter = Adapter({"q": kind(base["q.weight"])})
    out = jaxmix.compose(base, adapter, donate=True)
    np.testing.assert_array_equal(out["q.weight"], params()["q.weight"])
    (held,) = jax.tree.leaves(adapter.updates)
    np.testing.assert_array_equal(held, params()["q.weight"])


SOME = {"q": LoRA(A, B, 1.0), "k": Replace(B @ A + 1), "v": HiRA(A, B), "o": IA3(B[:, 0] + 1)}


def weights_of(mesh: Any = None) -> dict[str, Any]:
    """Returns a weight for each site, over eight devices or on one."""
    weights = {f"{site}.weight": np.arange(16, dtype=np.float32).reshape(4, 4) for site in SOME}
    if mesh is None:
        return {name: jnp.asarray(weight) for name, weight in weights.items()}
    return jax.device_put(weights, NamedSharding(mesh, P("y", "x")))


@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit], ids=str)
def test_nothing_is_donated_by_default(kind: Any) -> None:
    """Leaves and factors are only read, on one device or several."""
    mesh = None if kind is None else jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    base, updates = weights_of(mesh), jax.tree.map(jnp.asarray, SOME)
    before = jax.tree.map(np.array, (base, updates))
    run = jax.jit(jaxmix.compose) if kind is AxisType.Explicit else jaxmix.compose
    outs = [jax.tree.map(np.array, run(base, Adapter(updates, 0.7))) for _ in range(2)]
    assert not any(map(is_deleted, jax.tree.leaves((base, updates))))
    for old, new in ((before, (base, updates)), (outs[0], outs[1])):
        same = jax.tree.map(np.array_equal, old, jax.tree.map(np.asarray, new))
        assert all(jax.tree.leaves(same))


def test_traced_program_donates_nothing() -> None:
    """Not even if the second site of a traced leaf uses the first one's result."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    texts = [
        jax.jit(jaxmix.compose, donate_argnums=given)
        .lower(weights_of(mesh), Adapter(SOME))
        .compile()
        .as_text()
        for given in ((), 0)
    ]
    assert ["input_output_alias" in (text or "") for text in texts] == [False, True]


def test_bases_of_another_byte_order() -> None:
    base = {"q.weight": np.asarray(params()["q.weight"]).astype(">f4")}
    out = jaxmix.compose(base, LORA)["q.weight"]
    np.testing.assert_array_equal(out, base["q.weight"] + B @ A)
    assert out.dtype == np.float32


def test_masked_base_is_refused() -> None:
    base = {"q.weight": np.ma.masked_array(np.ones((4, 4), np.float32), np.eye(4) > 0)}
    with pytest.raises(LayoutError, match=r"q.weight is a masked array; fill it: np.ma.filled"):
        jaxmix.compose(base, LORA)


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("jitted", [False, True])
def test_replaced_numbers_are_not_read(bad: float, jitted: bool) -> None:
    """A replaced leaf, or replaced rows of an embedding, may hold NaN; other rows stay."""
    base = {
        "q.weight": np.full((4, 4), bad, np.float32),
        "q.bias": np.full(4, bad, np.float32),
        "e.weight": np.ones((4, 3), np.float32),
    }
    base["e.weight"][1:3] = bad
    new = np.arange(16, dtype=np.float32).reshape(4, 4)
    updates = {
        "q": Replace(new, new[0]),
        "e": Tokens(new[:1, :3], np.asarray([1], np.int32)),  # pyright: ignore[reportArgumentType]
    }
    run = jax.jit(jaxmix.compose) if jitted else jaxmix.compose
    out = run(base, Adapter(updates))
    np.testing.assert_array_equal(out["q.weight"], new)
    np.testing.assert_array_equal(out["q.bias"], new[0])
    np.testing.assert_array_equal(out["e.weight"][:2], [[1, 1, 1], new[0, :3]])
    assert not np.isfinite(out["e.weight"][2]).any()
    half = run(base, 0.5 * Adapter(updates))
    assert not np.isfinite(half["q.weight"]).any()


def test_strengths_have_a_slope_at_one() -> None:
    """Where the base's weight in the result is zero, its numbers are still the derivative."""
    base = {"q.weight": np.full((4, 4), 3.0, np.float32)}

    def total(strength: Any) -> Any:
        adapter = Adapter({"q": Replace(np.full((4, 4), 5.0, np.float32))}, strength)
        return jaxmix.compose(base, adapter)["q.weight"].sum()

    assert float(jax.grad(total)(1.0)) == 16 * 2.0


# ---------------------------------------------------------------- empty banks and empty batches


def test_empty_bank_accepts_members_later() -> None:
    """Every row is the base's, and members can be added later."""
    base, x = params(), jnp.ones((2, 4))

    def run(p: Any, x: Any) -> Any:
        return x @ p["q.weight"].T

    bank = Bank({}, base)
    for who in ([None, None], np.asarray([-1, -1]), np.zeros((2, 0), np.float32), [{}, {}]):
        np.testing.assert_array_equal(bank(run)(base, x, who), run(base, x))
    inside = jax.jit(lambda bank, p, x, who: bank(run)(p, x, who))
    np.testing.assert_array_equal(inside(bank, base, x, bank.who([None, None])), run(base, x))
    more = bank.add("x", LORA)
    out = more(run)(base, x, ["x", None])
    np.testing.assert_array_equal(out[1], run(base, x)[1])
    np.testing.assert_array_equal(out[0], run(base, x)[0] + 8)
    with pytest.raises(jaxmix.JaxmixError, match="'x'"):
        bank(run)(base, x, ["x", None])


def test_empty_batch() -> None:
    with pytest.raises(ShapeError) as caught:
        Bank({"x": LORA}, params())(lambda p, x: x)(params(), jnp.ones((0, 4)), [])
    assert str(caught.value) == "the batch has no rows, expected at least one."
