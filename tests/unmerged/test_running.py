"""When a weight is made dense, `factored` warns and `explain` reports it."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Bank, Layout, Rule
from jaxmix.errors import AdapterError, DenseWeightWarning, UnsupportedError
from jaxmix.families import IA3, LoRA, Replace

from ..messages import full_text
from .texts import PLACE, dense_refusal, dense_warning


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def lora(i: int = 6, o: int = 4) -> LoRA:
    return LoRA(normal(2, i), normal(o, 2), 0.5)


PARAMS = {"a.weight": normal(4, 6), "b.weight": normal(4, 6)}
LEAVES = jaxmix.attach(PARAMS, Adapter({"a": lora(), "b": lora()}))


def ordered(params: Any, x: Any) -> Any:
    """Computes a product and two operations without a factored form."""
    return x @ params["a.weight"].T + jnp.sort(params["b.weight"]).sum() + params["a.weight"].max()


SORT = ordered.__code__.co_firstlineno + 2
X = normal(3, 6)
USES = (
    f"\n  b.weight ((4, 6) float32): sort at test_running.py:{SORT} (ordered)"
    f"\n  a.weight ((4, 6) float32): reduce_max at test_running.py:{SORT} (ordered)\n"
)
ADVICE = (
    "Multiply tokens by the whole weight, convolve with it or look up its rows, or merge the "
    "adapters of these leaves with jaxmix.compose."
)
WARNING = (
    f"factored makes 2 weights dense at each call, where there is no factored form:{USES}This "
    f"takes a pass over the weight and memory for a copy of it. {ADVICE}"
)
REFUSAL = (
    'factored got how="factored", expected a factored form for each use of a weight; 2 weights '
    f'would be made dense:{USES}{ADVICE} With how="auto" these uses take the dense weight, with a '
    "warning."
)


@pytest.fixture(autouse=True)
def new_caches() -> None:
    """Forgets compiled functions: JAX 0.8 keeps the place of the first call of `jnp.sort`."""
    jax.clear_caches()


@pytest.mark.parametrize("is_jitted", [True, False])
def test_auto_warns_once(is_jitted: bool) -> None:
    run = jaxmix.factored(ordered)
    expected = ordered(jaxmix.compose(PARAMS, Adapter({"a": lora(), "b": lora()})), X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for count in (1, 2, 3):
            actual = (jax.jit(run) if is_jitted else run)(LEAVES, jnp.concatenate([X] * count))
            np.testing.assert_allclose(actual[:3], expected, rtol=1e-5)
    assert [(str(w.message), w.category) for w in caught] == [(WARNING, DenseWeightWarning)]


@pytest.mark.parametrize("is_jitted", [True, False])
def test_factored_refuses(is_jitted: bool) -> None:
    run = jaxmix.factored(ordered, "factored")
    with pytest.raises(UnsupportedError) as caught:
        (jax.jit(run) if is_jitted else run)(LEAVES, X)
    assert str(caught.value) == REFUSAL


def test_dense_does_not_warn() -> None:
    jaxmix.factored(ordered, "dense")(LEAVES, X)
    jaxmix.factored(lambda p: p, "dense")(LEAVES)


def test_cheaper_dense_does_not_warn() -> None:
    """There is a factored form, so `factored` is free to choose."""
    params = {"a.weight": normal(8, 8)}
    leaves = jaxmix.attach(params, Adapter({"a": Replace(normal(8, 8))}))
    (way,) = jaxmix.explain(leaves, tokens=500).ways
    assert way.way == "dense"
    jaxmix.factored(lambda p, x: x @ p["a.weight"].T)(leaves, normal(500, 8))


def test_vectors_do_not_warn() -> None:
    """Biases and norms are cheap to make dense, alone or stacked by layer."""
    params = {"norm": normal(3, 4), "a.weight": normal(4, 6), "a.bias": normal(4)}
    rules = (
        Rule(r"norm(\d)", "norm", None, r"\1"),
        Rule("a", "a.weight"),
        Rule("a", "a.bias", part="bias"),
    )
    mixed = Adapter({**{f"norm{i}": Replace(normal(4)) for i in range(3)}, "a": IA3(normal(4))})
    layout = Layout("norms", rules)

    def run(params: Any, x: Any) -> Any:
        y = x @ params["a.weight"].T + params["a.bias"][None]
        return jax.lax.scan(lambda y, norm: (jnp.tanh(y * norm[None]), None), y, params["norm"])[0]

    leaves = jaxmix.attach(params, mixed, layout=layout)
    actual = jaxmix.factored(run, "factored")(leaves, X)
    np.testing.assert_allclose(
        actual, run(jaxmix.compose(params, mixed, layout=layout), X), rtol=1e-5
    )
    ways = {way.leaf: way.why for way in jaxmix.explain(leaves).ways}
    assert ways["norm"] == ways["a.bias"] == "a vector, as cheap to make dense as to use"


def test_returned_weight_is_named() -> None:
    message = dense_refusal("a.weight ((6, 4) float32): the function returns it")
    with pytest.raises(UnsupportedError, match=message):
        jaxmix.factored(lambda p: p["a.weight"].T, "factored")(LEAVES)


def test_messages_name_leaves_of_any_argument() -> None:
    """A leaf that is itself an argument is named after its site."""
    leaf = LEAVES["a.weight"]
    runs: dict[str, Any] = {
        "a": lambda f: f({"a": leaf}),
        "a.weight": lambda f: f({"a": {"weight": leaf}}),
    }
    for name, run in [*runs.items(), ("a", lambda f: f(leaf)), ("a", lambda f: f(x=leaf))]:
        message = dense_refusal(f"{name} ((4, 6) float32): {PLACE}")
        with pytest.raises(UnsupportedError, match=message):
            run(jaxmix.factored(lambda x: jnp.sort(jax.tree.leaves(x)[0]), "factored"))


def test_bank_warns_about_dense_rows_unless_requested() -> None:
    """`bank(fn)` warns once; how="factored" raises an error and how="dense" is silent."""
    bank = Bank({"a": Adapter({"a": lora()})}, PARAMS)

    def run(params: Any, x: Any) -> Any:
        return x @ jnp.sort(params["a.weight"]).T

    expected = run(jaxmix.compose(PARAMS, Adapter({"a": lora()})), X[:1])
    use = (
        f"a.weight ((4, 6) float32): sort at test_running.py:{run.__code__.co_firstlineno + 1} "
        f"({run.__qualname__})"
    )
    message = dense_warning(use, "Bank", "for each row")
    with pytest.warns(DenseWeightWarning, match=message) as caught:
        actual = bank(run)(PARAMS, X[:1], ["a"])
    assert len(caught) == 1 and caught[0].filename == __file__
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(bank(run, "dense")(PARAMS, X[:1], ["a"]), expected, rtol=1e-5)
    with pytest.raises(UnsupportedError, match=dense_refusal(use, "Bank")):
        bank(run, "factored")(PARAMS, X[:1], ["a"])
    with pytest.raises(
        AdapterError,
        match=full_text("Bank: how is 'fast', expected one of 'auto', 'factored', 'dense'."),
    ):
        bank(run, "fast")  # pyright: ignore[reportArgumentType]


def test_bank_computes_dense_products_on_request() -> None:
    bank = Bank({"a": Adapter({"a": lora()})}, PARAMS)

    def run(params: Any, x: Any) -> Any:
        return x @ params["a.weight"].T

    expected = run(jaxmix.compose(PARAMS, Adapter({"a": lora()})), X[:1])
    np.testing.assert_allclose(bank(run, "dense")(PARAMS, X[:1], ["a"]), expected, rtol=1e-5)


# ---------------------------------------------------------------- explain


def test_explain_names_uses_without_a_form() -> None:
    """`explain` reads the given function; without one it assumes a product."""
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert [way.way for way in jaxmix.explain(LEAVES).ways] == ["factored", "factored"]
    for args in ((X,), (x,)):
        ways = {way.leaf: way for way in jaxmix.explain(LEAVES, fn=ordered, args=args).ways}
        assert {way.way for way in ways.values()} == {"dense"}
        location = f"at test_running.py:{SORT} (ordered)"
        assert ways["b.weight"].why == f"no factored form for sort {location}"
        assert ways["a.weight"].why == f"no factored form for reduce_max {location}"

    def product(params: Any, x: Any, *, scale: float = 1.0) -> Any:
        return scale * (x @ params["a.weight"].T)

    ways = jaxmix.explain(LEAVES, fn=product, args=(x,)).ways
    assert [way.way for way in ways] == ["factored", "factored"]
