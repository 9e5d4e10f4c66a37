"""Law 3: one model by compiled passes, as one function, from a file, over strengths, sharded."""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.families import LoRA

from .draws import KINDS, MAKERS, Module, adapters, draw_update, few, tree, trees
from .running import eagerly, error
from .truth import fold_tree

CHAINS = (*((kind,) for kind in MAKERS), ("LoRA", "OFT", "DoRA"), ("OFT", "LoKr", "Together"))
# Sizes divisible by eight devices.
MODULE = Module("linear", (8, 16), True)
CONV = Module("conv", (8, 4, 2, 3), True)


def chain(kinds: tuple[str, ...], module: Module = MODULE, site: str = "a") -> list[Adapter]:
    """An adapter of each kind. With these seeds Replace changes both the weight and the bias."""
    return [
        Adapter({site: draw_update(kind, module, 3 * i + 1)}, 0.7 + 0.2 * i, f"{i}")
        for i, kind in enumerate(kinds)
    ]


@few()
@given(data=st.data(), drawn=trees(max_modules=2))
def test_compiled(data: st.DataObject, drawn: Any) -> None:
    """Compiled passes and one compiled function both equal the naive fold."""
    modules, params = drawn
    mixed = data.draw(adapters(modules))
    truth = fold_tree(params, mixed)
    assert error(eagerly(params, mixed), truth) < 1e-11
    with jax.enable_x64(True):
        assert error(jax.jit(jaxmix.compose)(params, mixed), truth) < 1e-11


@few()
@given(data=st.data(), drawn=trees(max_modules=2))
def test_saved_and_loaded(data: st.DataObject, drawn: Any) -> None:
    """A mix that was saved and loaded gives the same result, bit for bit."""
    modules, params = drawn
    mixed = jaxmix.mix(*data.draw(adapters(modules)))
    with TemporaryDirectory() as folder:
        loaded = jaxmix.load(jaxmix.save(mixed, f"{folder}/mixed"))
    out, expected = eagerly(params, list(loaded.parts)), eagerly(params, list(mixed.parts))
    assert error(out, fold_tree(params, list(mixed.parts))) < 1e-11
    assert all(np.array_equal(out[name], expected[name]) for name in params)


@pytest.mark.parametrize("kinds", CHAINS[-2:], ids="-".join)
def test_vmap_over_strengths(kinds: tuple[str, ...]) -> None:
    """`vmap` over strengths equals a loop over them, also under jit."""
    params, adapters = tree({"a": MODULE}, 0), chain(kinds)
    stack = np.array([[0.0, 0.5], [1.0, -0.3], [1.0, 1.0]])[:, :1].repeat(len(kinds), 1)
    stack[1, 0] = 0.4

    def run(strengths: Any) -> Any:
        return jaxmix.mix(*adapters, strength=strengths)(params)

    with jax.enable_x64(True):
        outs = [jax.vmap(run)(jnp.asarray(stack)), jax.jit(jax.vmap(run))(jnp.asarray(stack))]
    for i, strengths in enumerate(stack):
        pairs = zip(adapters, strengths, strict=True)
        truth = fold_tree(params, [a * float(s) for a, s in pairs])
        for out in outs:
            touched = {n: np.asarray(x)[i] for n, x in out.items() if np.shape(x)[:1] == (3,)}
            assert touched and error(touched, truth, only=touched) < 1e-11


def test_vmap_over_adapters() -> None:
    """Adapters of equal shapes, stacked into one."""
    params = tree({"a": MODULE}, 0)
    three = [Adapter({"a": draw_update("LoHa", MODULE, i)}, 0.5 + i) for i in range(3)]
    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *three)
        out = jax.vmap(lambda a: jaxmix.compose(params, a)["a.weight"])(stacked)
    for i, adapter in enumerate(three):
        truth = fold_tree(params, [adapter])["a.weight"]
        np.testing.assert_allclose(out[i], truth, rtol=1e-11)


def test_eval_shape() -> None:
    """`eval_shape` needs no arrays."""
    params = tree({"a": MODULE}, 0)
    for kinds in CHAINS:
        with jax.enable_x64(True):
            out = jax.eval_shape(jaxmix.compose, params, chain(kinds))
            assert {n: (x.shape, x.dtype) for n, x in out.items()} == {
                n: (x.shape, x.dtype) for n, x in params.items()
            }


# ---------------------------------------------------------------- sharded


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    """Eight devices as (4, 2)."""
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def placed(leaf: Any, kind: AxisType, *spec: Any) -> jax.Array:
    """An array on eight devices."""
    return jax.device_put(np.asarray(leaf, np.float32), NamedSharding(mesh(kind), P(*spec)))


AXIS_TYPES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
SPECS = {"rows": ("x", None), "both": ("y", "x"), "columns": (None, ("x", "y")), "none": ()}


def run_sharded(params: Any, adapters: list[Adapter], **how: Any) -> list[Any]:
    """Results by passes, with donation of a copy, and as one function; all keep the shardings."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    copy = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), params)
    out = [
        jaxmix.compose(params, adapters, **how),
        jaxmix.compose(copy, adapters, donate=True, **how),
        jax.jit(lambda p, a: jaxmix.compose(p, a, **how), out_shardings=shardings)(
            params, adapters
        ),
    ]
    for result in out:
        same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), result, shardings)
        assert all(jax.tree.leaves(same))
        assert jax.tree.map(jax.typeof, result) == jax.tree.map(jax.typeof, params)
    return out


@pytest.mark.thorough
@pytest.mark.parametrize("flax", [False, True], ids=["torch", "flax"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", AXIS_TYPES)
def test_sharded(kind: str, spec: str, flax: bool) -> None:
    """Values and shardings are right on meshes with automatic and explicit axes."""
    assert len(jax.devices()) == 8
    base = tree({"a": MODULE}, 0, np.float32)
    weight, bias = base.values()
    # The chains rotate, so that each one is tested with some sharding of each kind.
    start = (list(SPECS).index(spec) + 4 * flax) % 3
    for kinds in CHAINS[start::3]:
        adapters = chain(kinds)
        truth = fold_tree(base, adapters)
        params = {
            "a": {
                ("kernel" if flax else "weight"): placed(
                    weight.T if flax else weight, AXIS_TYPES[kind], *SPECS[spec]
                ),
                "bias": placed(bias, AXIS_TYPES[kind], "x"),
            }
        }
        for out in run_sharded(params, adapters):
            kernel_or_weight = out["a"]["kernel"].T if flax else out["a"]["weight"]
            actual = {"a.weight": kernel_or_weight, "a.bias": out["a"]["bias"]}
            assert error(actual, truth) < 2e-6, kinds


Make = Callable[[np.ndarray], np.ndarray]
STORED: dict[str, tuple[Make, Make, tuple[Any, ...], Layout | None]] = {
    "a convolution, HWIO": (
        lambda w: np.moveaxis(w, (0, 1), (-1, -2)),
        lambda k: np.moveaxis(k, (-1, -2), (0, 1)),
        (None, None, "y", "x"),
        None,
    ),
    "in a stack": (
        lambda w: np.stack([0 * w, w], 1),
        lambda k: k[:, 1],
        ("x", None, "y"),
        Layout("mine", (Rule("a", "a.kernel", index=":, 1"),)),
    ),
    **{
        f"with heads, {name}": (
            lambda w: w.T.reshape(16, 4, 2),
            lambda k: k.reshape(16, 8).T,
            spec,
            Layout("mine", (Rule("a", "a.kernel", "d n h -> (n h) d"),)),
        )
        # Within the heads, XLA does not restore the sharding by itself.
        for name, spec in {"outside": ("y", "x"), "inside": ("x", None, "y")}.items()
    },
}


@pytest.mark.one_of(2)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("kind", AXIS_TYPES)
def test_resharded_leaves_are_restored(kind: str, stored: str) -> None:
    """Leaves whose axes are moved or indexed get their shardings back."""
    to_leaf, from_leaf, spec, layout = STORED[stored]
    module = CONV if layout is None else MODULE
    weight = tree({"a": module}, 0, np.float32)["a.weight"]
    for kinds in (("LoRA",), ("OFT", "DoRA")):
        adapters = [
            Adapter({"a": weight_only(draw_update(k, module, i))}, 0.5, k)
            for i, k in enumerate(kinds)
        ]
        params = {"a": {"kernel": placed(to_leaf(weight), AXIS_TYPES[kind], *spec)}}
        truth = fold_tree({"a.weight": weight}, adapters)
        for out in run_sharded(params, adapters, layout=layout):
            assert error({"a.weight": from_leaf(np.asarray(out["a"]["kernel"]))}, truth) < 2e-6


def weight_only(update: Any) -> Any:
    """The update without its bias."""
    return (
        LoRA(update.a, update.b, update.scale, update.magnitude) if hasattr(update, "a") else update
    )


@pytest.mark.parametrize("kind", AXIS_TYPES)
def test_sharded_under_transformations(kind: str) -> None:
    """`vmap` over strengths and gradients of them, on sharded leaves."""
    base = tree({"a": MODULE}, 0, np.float32)
    params = {
        "a.weight": placed(base["a.weight"], AXIS_TYPES[kind], "y", "x"),
        "a.bias": placed(base["a.bias"], AXIS_TYPES[kind], "x"),
    }
    adapters = chain(("OFT", "DoRA"))

    def run(strengths: Any) -> Any:
        return jaxmix.mix(*adapters, strength=strengths)(params)["a.weight"]

    stack = jnp.array([[0.0, 1.0], [0.5, 0.3]])
    with jax.set_mesh(mesh(AXIS_TYPES[kind])):
        out = jax.vmap(run)(stack)
        slope = jax.jit(jax.jacfwd(run))(stack[1])
    for i in range(2):
        truth = fold_tree(base, [a * float(s) for a, s in zip(adapters, stack[i], strict=True)])
        assert error({"a.weight": out[i]}, truth, only=["a.weight"]) < 2e-6
    plain = jax.jacfwd(lambda s: jaxmix.mix(*adapters, strength=s)(base)["a.weight"])(stack[1])
    np.testing.assert_allclose(slope, plain, rtol=1e-4, atol=1e-5)


def test_factors_on_the_mesh() -> None:
    """Factors on an explicit mesh, replicated or sharded along an axis, work with the leaf."""
    kind = AxisType.Explicit
    base = tree({"a": MODULE}, 0, np.float32)
    params = {name: placed(leaf, kind, "x") for name, leaf in base.items()}
    update = draw_update("LoRA", Module("linear", (8, 16)), 0)
    assert isinstance(update, LoRA)
    on_mesh = LoRA(placed(update.a, kind, None, "x"), placed(update.b, kind), update.scale)
    out = jaxmix.compose(params, Adapter({"a": on_mesh}, jax.device_put(jnp.float32(0.5))))
    truth = fold_tree(base, [Adapter({"a": update}, 0.5)])
    assert error(out, truth) < 2e-6
    assert all(jax.typeof(out[name]) == jax.typeof(leaf) for name, leaf in params.items())


def test_another_device() -> None:
    """A leaf on one device stays there."""
    base = tree({"a": KINDS["wide"]}, 0, np.float32)
    device = jax.devices()[3]
    params = jax.device_put(base, device)
    out = jaxmix.compose(params, [Adapter({"a": draw_update("LoKr", KINDS["wide"], 0)})])
    assert all(leaf.devices() == {device} for leaf in out.values())
