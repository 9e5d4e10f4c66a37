"""All families under JAX's transformations, with adapters as arguments, so arrays are traced."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import DEFT, HRA, FRoD

from ..compiling import timed_events
from .crowd import LINEAR, UPDATES, base, floats, folds, is_float, leaves_off, merged

# The families whose map is not linear in the strength.
ROTATIONS = {"OFT", "BOFT", "DiagOFT", "RoAd"}
# One update of each family in a test, or two: their forms are drawn at random.
FIRST, SECOND, TWO = (
    {site: update for site, update in UPDATES.items() if site[-1] in seeds}
    for seeds in ("0", "1", "01")
)


def one_or_two(one: Any) -> Any:
    """Runs a test with one update of each family, and in `make test-rest` with two."""
    thorough = pytest.param(TWO, id="two", marks=pytest.mark.thorough)
    return pytest.mark.parametrize("updates", [pytest.param(one, id="one"), thorough])


@cache
def compiled() -> Callable[[float], dict[str, np.ndarray]]:
    """All families' maps as one program in float64, at a strength; it is traced once."""
    params, traces = base(UPDATES), []

    @jax.jit
    def run(params: Any, adapter: Any) -> Any:
        traces.append(1)
        return jaxmix.compose(params, adapter)

    def at(strength: float) -> dict[str, np.ndarray]:
        with jax.enable_x64(True):
            out = jax.tree.map(np.asarray, run(params, Adapter(UPDATES, strength)))
        assert len(traces) == 1
        return out

    return at


@pytest.mark.parametrize("strength", [1.0, 0.7, -0.6])
def test_traced_arrays(strength: float) -> None:
    """All arrays of the adapters are traced, so the values of positions are unknown too."""
    assert leaves_off(compiled()(strength), folds(base(UPDATES), UPDATES, strength), 1e-12) == {}


def test_zero_strength_is_the_base() -> None:
    """At strength 0 every family leaves the base unchanged, bit for bit."""
    params, out = base(UPDATES), compiled()(0.0)
    assert [name for name, leaf in params.items() if not np.array_equal(out[name], leaf)] == []


def test_strength_interpolates_linearly() -> None:
    """All families except rotations interpolate linearly between the base and PEFT's map."""
    start, trained_map = compiled()(0.0), compiled()(1.0)
    for s in (0.3, -1.5):
        linear = {name: leaf + s * (trained_map[name] - leaf) for name, leaf in start.items()}
        curved = leaves_off(compiled()(s), linear, 1e-12)
        # Two linear maps in sequence need not be linear in a common strength.
        assert {name.split(".")[0][:-1] for name in curved} - {"Together"} == ROTATIONS


def test_eval_shape() -> None:
    """Params and adapters may be shapes without values."""
    params = base(UPDATES, np.float32)
    outlines = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), (params, Adapter(UPDATES))
    )
    out = jax.eval_shape(jaxmix.compose, *outlines)
    assert out == outlines[0]


@one_or_two(SECOND)
def test_vmap_over_stacked_adapters(updates: dict[str, Any]) -> None:
    """Adapters of equal shapes, stacked into one."""
    params = base(updates, np.float32)
    scaled = jax.tree.map(lambda x: 0.8 * x if is_float(x) else x, updates)
    stack = jax.tree.map(lambda *x: np.stack(x), updates, scaled)
    assert all(repr(Adapter({site: update})) for site, update in stack.items())
    run = jax.vmap(lambda stacked: jaxmix.compose(params, Adapter(stacked, 0.7)))
    out = jax.tree.map(np.asarray, jax.jit(run)(stack))
    for i, adapters in enumerate((updates, scaled)):
        assert (
            leaves_off({n: x[i] for n, x in out.items()}, folds(params, adapters, 0.7), 5e-6) == {}
        )


@pytest.mark.thorough
def test_shard_map_over_adapters() -> None:
    """Each device applies its own adapter to the same params."""
    params = base(TWO, np.float32)
    scaled = jax.tree.map(lambda x: 0.8 * x if is_float(x) else x, TWO)
    stack = jax.tree.map(lambda *x: np.stack(x), TWO, scaled)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))

    def run(stack: Any) -> Any:
        updates = jax.tree.map(lambda x: x[0], stack)
        return jax.tree.map(lambda x: x[None], jaxmix.compose(params, Adapter(updates, 0.7)))

    out = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(stack)
    for i, updates in enumerate((TWO, scaled)):
        leaves = {name: np.asarray(leaf)[i] for name, leaf in out.items()}
        assert leaves_off(leaves, folds(params, updates, 0.7), 5e-6) == {}


# ---------------------------------------------------------------- gradients


@cache
def trained() -> Callable[[list[Any], dict[str, float]], Any]:
    """A compiled function of the loss at each site and its gradients by factors and strengths."""
    params = base(FIRST)
    rng = np.random.default_rng(3)
    aims = {name: rng.normal(size=leaf.shape) for name, leaf in params.items()}

    def loss(numbers: list[Any], strengths: dict[str, Any]) -> Any:
        updates = merged(FIRST, numbers)
        parts = [Adapter({site: updates[site]}, strengths[site], site) for site in FIRST]
        out = jaxmix.compose(params, parts)
        values = {
            site: sum(jnp.sum(aims[n] * out[n]) for n in (f"{site}.weight", f"{site}.bias"))
            for site in FIRST
        }
        return sum(values.values()), values

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def called(numbers: list[Any], strengths: dict[str, float]) -> Any:
        with jax.enable_x64(True):
            (_, values), slopes = run(numbers, strengths)
            return jax.tree.map(np.asarray, (values, *slopes))

    return called


def along(directions: list[Any], step: float) -> list[Any]:
    """The factors, moved by a step along the directions."""
    pairs = zip(floats(FIRST), directions, strict=True)
    return [None if x is None else x + step * direction for x, direction in pairs]


@pytest.mark.parametrize("strength", [0.7, 0.0])
def test_gradients(strength: float) -> None:
    """Gradients by all factors and by strengths equal central differences, at strength 0 too."""
    rng, h = np.random.default_rng(4), 1e-6
    directions = [None if x is None else rng.normal(size=x.shape) for x in floats(FIRST)]
    strengths = {site: strength for site in FIRST}
    _, slopes, by_strength = trained()(floats(FIRST), strengths)
    pairs = zip(slopes, directions, strict=True)
    products = [
        0.0 if direction is None else float((x * direction).sum()) for x, direction in pairs
    ]
    numbers = merged(FIRST, products)
    factors_above, factors_below = (
        trained()(along(directions, step), strengths)[0] for step in (h, -h)
    )
    above, below = (
        trained()(floats(FIRST), {site: strength + step for site in FIRST})[0] for step in (h, -h)
    )
    errors: dict[str, tuple[float, float]] = {}
    for site, update in FIRST.items():
        # Integers have no gradient and were left unchanged.
        leaves = zip(jax.tree.leaves(numbers[site]), jax.tree.leaves(update), strict=True)
        slope = sum(float(x) for x, leaf in leaves if is_float(leaf))
        for name, actual, expected in (
            (site, slope, (factors_above[site] - factors_below[site]) / (2 * h)),
            (f"{site}'s strength", by_strength[site], (above[site] - below[site]) / (2 * h)),
        ):
            if not abs(actual - expected) < 1e-6 * max(1.0, abs(expected)):
                errors[name] = (float(actual), float(expected))
    assert errors == {}


def still(update: Any) -> Any:
    """The update with its zeros in valid places: a basis can't be computed from zeros alone."""
    if isinstance(update, FRoD):
        return dataclasses.replace(update, v=np.eye(len(update.v)), lengths=0 * update.lengths)
    return update


# LAPACK's QR is not differentiable there.
BASES = (lambda u: isinstance(u, DEFT) and u.method == "qr",
         lambda u: isinstance(u, HRA) and u.orthogonal)  # fmt: skip


@pytest.mark.parametrize("strength", [0.7, 0.0])
@pytest.mark.parametrize("index", [None, 0, 1, 2, 3])
def test_gradients_with_zero_factors(index: int | None, strength: float) -> None:
    """All factors zero, or one of them, as training starts: every gradient is finite."""
    updates: dict[str, Any] = {}
    for site, update in FIRST.items():
        leaves, treedef = jax.tree.flatten(update)
        zeros = [
            np.zeros_like(x) if is_float(x) and index in (None, i) else x
            for i, x in enumerate(leaves)
        ]
        needs_it = isinstance(update, FRoD) or any(is_one(update) for is_one in BASES)
        updates[site] = still(update) if needs_it else jax.tree.unflatten(treedef, zeros)
    strengths = {site: strength for site in FIRST}
    values, slopes, by_strength = trained()(floats(updates), strengths)
    by_site = merged(updates, slopes)
    assert [site for site in FIRST if not np.isfinite(values[site])] == []
    assert [site for site in FIRST if not np.isfinite(by_strength[site])] == []
    assert [
        site
        for site in FIRST
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(by_site[site]))
    ] == []


# ---------------------------------------------------------------- traces, donation, devices, trees


@one_or_two(SECOND)
def test_passes_are_traced_once_and_donate_buffers(updates: dict[str, Any]) -> None:
    """New strengths and new arrays of equal shapes use the same programs, for every family."""
    params = {name: jnp.asarray(leaf) for name, leaf in base(updates, np.float32).items()}
    scaled = jax.tree.map(
        lambda x: 1.1 * x if isinstance(x, np.ndarray) and is_float(x) else x, updates
    )
    first = jaxmix.compose(params, Adapter(updates, 0.7))
    assert leaves_off(first, folds(params, updates, 0.7), 5e-6) == {}
    with timed_events() as events:
        jaxmix.compose(params, Adapter(scaled, 0.5))
    assert [event for event in events if "trace" in event or "backend_compile" in event] == []
    donated = jaxmix.compose(params, Adapter(updates, 0.7), donate=True)
    assert leaves_off(donated, {n: np.asarray(x) for n, x in first.items()}, 1e-6) == {}
    assert all(params[f"{site}.weight"].is_deleted() for site in updates)


EXPLICIT = pytest.param(AxisType.Explicit, marks=pytest.mark.thorough)


@pytest.mark.parametrize("kind", [AxisType.Auto, EXPLICIT], ids=str)
@one_or_two(FIRST)
def test_sharded(updates: dict[str, Any], kind: AxisType) -> None:
    """Sharded leaves have the values of unsharded ones, and keep their shardings."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {1: P("x"), 2: P("y", "x"), 3: P("x", None, "y")}
    unsharded = base(updates, np.float32)
    params = {
        n: jax.device_put(x, NamedSharding(mesh, specs[x.ndim])) for n, x in unsharded.items()
    }
    if kind is AxisType.Auto:
        out = jaxmix.compose(params, Adapter(updates, 0.7))
    else:
        out = jax.jit(jaxmix.compose)(params, Adapter(updates, 0.7))
    assert leaves_off(out, folds(unsharded, updates, 0.7), 5e-6) == {}
    assert {n: jax.typeof(x) for n, x in out.items()} == {
        n: jax.typeof(x) for n, x in params.items()
    }
    assert [n for n, x in out.items() if not x.sharding.is_equivalent_to(params[n].sharding, x.ndim)
            ] == []  # fmt: skip


@pytest.mark.thorough
def test_nnx_model() -> None:
    """Kernels (in, out) in an NNX state."""
    plain = base(LINEAR, np.float32)

    class Model(nnx.Module):
        """One linear layer per site."""

        def __init__(self) -> None:
            for site in LINEAR:
                layer: Any = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
                layer.kernel[...] = jnp.asarray(plain[f"{site}.weight"].T)
                layer.bias[...] = jnp.asarray(plain[f"{site}.bias"])
                setattr(self, site, layer)

    graph, state = nnx.split(Model())
    out = nnx.merge(graph, jax.jit(jaxmix.compose)(state, Adapter(LINEAR, 0.7)))
    actual = {f"{site}.weight": getattr(out, site).kernel[...].T for site in LINEAR}
    actual |= {f"{site}.bias": getattr(out, site).bias[...] for site in LINEAR}
    assert leaves_off(actual, folds(plain, LINEAR, 0.7), 5e-6) == {}


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_conv1d_of_gpt2(step: int) -> None:
    """PyTorch weights (in, out), which are detected by the bias's size and not by the update."""
    linear = {site: LINEAR[site] for site in list(LINEAR)[::step]}  # one or all of each kind
    plain = base(linear, np.float32)
    transposed = {n: x.T.copy() if x.ndim == 2 else x for n, x in plain.items()}
    # Replaced weights have the file's axis order there.
    updates = {site: update.with_transposed_weight() for site, update in linear.items()}
    out = jax.jit(jaxmix.compose)(transposed, Adapter(updates, 0.7))
    actual = {n: x.T if x.ndim == 2 else x for n, x in out.items()}
    assert leaves_off(actual, folds(plain, linear, 0.7), 5e-6) == {}
