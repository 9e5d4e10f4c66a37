"""Law 5, traces: how often functions are traced and compiled, and which buffers are donated."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule

from ..compiling import COMPILED, TRACED, timed_events
from .draws import FAMILIES, MAKERS, Module, draw_update, tree
from .running import error
from .truth import fold_tree

Count = Callable[[Callable[[], Any]], tuple[int, int]]


@pytest.fixture
def count() -> Iterator[Count]:
    """Runs a function and counts JAX's traces and compilations."""
    with timed_events() as events:

        def counted(run: Callable[[], Any]) -> tuple[int, int]:
            events.clear()
            jax.block_until_ready(jax.tree.leaves(run()))
            return events[TRACED], events[COMPILED]

        yield counted


def model(layers: int, module: Module) -> dict[str, Any]:
    """Layers of one shape."""
    base = tree({f"layers.{i}.q": module for i in range(layers)}, 0, np.float32)
    return {name: jnp.asarray(leaf) for name, leaf in base.items()}


def adapter(kind: str, module: Module, layers: int = 2, seed: int = 4, name: str = "a") -> Adapter:
    """Returns one kind at all layers; its structure depends on the seed, not on its name."""
    update = draw_update(kind, module, seed)
    return Adapter({f"layers.{i}.q": update for i in range(layers)}, name=name)


def another(adapter: Adapter, name: str, seed: int) -> Adapter:
    """Another adapter of the same shapes: new floats, the same positions."""
    rng = np.random.default_rng(seed)
    renumbered = jax.tree.map(
        lambda x: (
            rng.normal(size=x.shape) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        ),
        adapter,
    )
    return renumbered.renamed(name)


# `test_every_family_jax` covers all families at once.
KINDS = ("LoRA", "OFT", "Together")
# No other test has these shapes, so their programs are not yet compiled.
SHAPES = {kind: Module("linear", (6 + 2 * i, 22), True) for i, kind in enumerate(KINDS)}
STRENGTHS = (
    0.5,
    -2,
    np.float32(0.25),
    np.float64(0.1),
    np.array(3.0),
    jnp.asarray(0.7),
    jnp.int32(2),
)


@pytest.mark.parametrize("kind", KINDS)
def test_new_strengths_and_adapters_are_not_traced(kind: str, count: Count) -> None:
    """`compose` reuses its programs for strengths of all types, other arrays and other names."""
    module = SHAPES[kind]
    params, first = model(2, module), adapter(kind, module)
    traced, compiled = count(lambda: jaxmix.compose(params, [first]))
    assert traced > 0 and compiled > 0, "the counter counts nothing"
    for strength in STRENGTHS:  # compiles JAX's own small programs before counting
        jnp.asarray((strength * first).strength).astype(np.float32)
    assert count(lambda: [jaxmix.compose(params, [s * first]) for s in STRENGTHS]) == (0, 0)
    second = another(first, "another name", 7)
    assert count(lambda: jaxmix.compose(params, [0.3 * second])) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_jit_of_a_user_is_traced_once(kind: str) -> None:
    """Adapters as arguments: other strengths, arrays and names use the same program."""
    module = SHAPES[kind]
    params, first = model(1, module), adapter(kind, module, 1)
    traces: list[int] = []

    @jax.jit
    def run(params: Any, adapters: Any) -> Any:
        traces.append(1)
        return jaxmix.compose(params, adapters)

    for strength in (1.0, 0.5, -3, np.float32(0.2), np.float64(0.1)):
        run(params, [strength * first])
    run(params, [0.5 * another(first, "b", 3)])
    run(params, [0.5 * first.renamed("c")])
    assert len(traces) == 1
    for strength in (0.5, 0.7):  # an array has another type than a number: one more trace
        run(params, [jnp.float32(strength) * first])
    assert len(traces) == 2


def test_strengths_as_an_argument_are_traced_once() -> None:
    """A vector of strengths is an argument, and the adapters are closed over."""
    module = Module("linear", (6, 26))
    params = model(1, module)
    parts = [adapter(k, module, 1, i, k) for i, k in enumerate(("LoRA", "OFT"))]
    traces: list[int] = []

    @jax.jit
    def run(strengths: Any) -> Any:
        traces.append(1)
        return jaxmix.mix(*parts, strength=strengths)(params)

    outs = [run(jnp.array([s, 1 - s])) for s in (0.0, 0.5, 1.0)]
    assert len(traces) == 1 and len(outs) == 3


@pytest.mark.parametrize("kinds", [("LoRA",), FAMILIES], ids=["LoRA", "six"])
def test_compile_time_does_not_grow_with_depth(kinds: tuple[str, ...], count: Count) -> None:
    """Twelve layers of one shape use the programs of two."""
    counts = []
    for layers, size in ((1, 40), (2, 44), (12, 52)):  # the first call compiles what all share
        module = Module("linear", (6, size), True)
        params = model(layers, module)
        parts = [adapter(k, module, layers, 4, k) for k in kinds]
        counts.append(count(lambda p=params, a=parts: jaxmix.compose(p, a)))
    assert counts[1] == counts[2] and counts[1][1] > 0


def test_layers_in_one_leaf_are_one_program_each(count: Count) -> None:
    """Each index of a stack is a separate program so far; a new strength is not."""
    params = {"w": jnp.ones((3, 6, 34))}
    layout = Layout("mine", (Rule(r"layers\.(\d)\.q", "w", index=r"\1"),))
    lora = adapter("LoRA", Module("linear", (6, 34)), 3)
    assert count(lambda: jaxmix.compose(params, [lora], layout=layout))[1] > 0
    assert count(lambda: jaxmix.compose(params, [0.5 * lora], layout=layout)) == (0, 0)


@pytest.mark.thorough
def test_no_tracer_leaks() -> None:
    """No traced value is kept."""
    module = Module("linear", (6, 32), True)
    params = {n: np.asarray(x) for n, x in model(1, module).items()}
    parts = [adapter(kind, module, 1, 4, kind) for kind in MAKERS]

    def run(strength: Any) -> Any:
        return jaxmix.compose(params, jaxmix.mix(*parts, strength=strength))["layers.0.q.weight"]

    with jax.checking_leaks():
        jax.jit(run)(0.5)
        jax.jit(jax.vmap(run))(jnp.array([0.5, 1.0]))
        jax.jit(jax.grad(lambda s: run(s).sum()))(0.5)
        jax.eval_shape(run, 0.5)
        jaxmix.compose(params, parts)


# ---------------------------------------------------------------- donation


def test_donation_deletes_the_touched_weights() -> None:
    """Donation deletes touched weights only, and none that is twice in the tree."""
    module = Module("linear", (6, 36), True)
    sites = ("touched", "twice", "untouched", "numpy")
    base = tree({site: module for site in sites}, 0, np.float32)
    params: dict[str, Any] = {n: jnp.asarray(x) for n, x in base.items()}
    params["again"] = params["twice.weight"]
    params["numpy.weight"] = numpy_weight = base["numpy.weight"].copy()
    parts = [
        Adapter({s: draw_update(k, module, 4 + i) for s in sites if s != "untouched"}, 0.5, k)
        for i, k in enumerate(("LoRA", "DoRA", "OFT", "Replace"))
    ]
    truth = fold_tree(base, parts)
    without_donation = jaxmix.compose(params, parts)
    assert not any(x.is_deleted() for x in params.values() if isinstance(x, jax.Array))
    out = jaxmix.compose(params, parts, donate=True)
    assert error(out, truth) < 1e-5 and error(without_donation, truth) < 1e-5
    deleted = {n for n, x in params.items() if isinstance(x, jax.Array) and x.is_deleted()}
    assert deleted == {"touched.weight"}
    assert out["untouched.weight"] is params["untouched.weight"] and out["again"] is params["again"]
    np.testing.assert_array_equal(numpy_weight, base["numpy.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_donation_of_every_kind(kind: str) -> None:
    """Donation works for Flax kernels, and for 16-bit weights, whose buffers can't be reused."""
    module = SHAPES[kind]
    base = tree({"a": module}, 0, np.float32)
    single = [Adapter({"a": draw_update(kind, module, 4)}, 0.6)]
    for dtype, tolerance in ((np.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        weight, bias = (x.astype(dtype) for x in base.values())
        truth = fold_tree({"a.weight": weight, "a.bias": bias}, single)
        flat = {"a.weight": jnp.asarray(weight), "a.bias": jnp.asarray(bias)}
        flax = {"a": {"kernel": jnp.asarray(weight.T.copy()), "bias": jnp.asarray(bias)}}
        assert error(jaxmix.compose(flat, single, donate=True), truth) < tolerance
        out = jaxmix.compose(flax, single, donate=True)["a"]
        actual = {"a.weight": np.asarray(out["kernel"]).T, "a.bias": out["bias"]}
        assert error(actual, truth) < tolerance
        if dtype is np.float32:
            assert flat["a.weight"].is_deleted() and flax["a"]["kernel"].is_deleted()


def test_donation_inside_jit() -> None:
    """Inside `jit` nothing is donated, and there is no warning."""
    module = Module("linear", (6, 38), True)
    params = {n: jnp.asarray(x) for n, x in tree({"a": module}, 0, np.float32).items()}
    single = [Adapter({"a": draw_update("OFT", module, 4)})]
    out = jax.jit(lambda p, a: jaxmix.compose(p, a, donate=True))(params, single)
    truth = fold_tree({n: np.asarray(x) for n, x in params.items()}, single)
    assert error(out, truth) < 1e-5 and not any(x.is_deleted() for x in params.values())


def test_errors_donate_nothing() -> None:
    """An error is raised before any buffer is deleted."""
    module = Module("linear", (6, 8))
    params = {n: jnp.asarray(x) for n, x in tree({"a": module}, 0, np.float32).items()}
    lora = draw_update("LoRA", module, 0)
    with pytest.raises(jaxmix.JaxmixError):
        jaxmix.compose(params, [Adapter({"a": lora, "lost": lora})], donate=True)
    assert not params["a.weight"].is_deleted()
