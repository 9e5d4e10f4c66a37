"""`combine` for adapters of all kinds, against NumPy formulas on W' − W from the naive fold."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmix import Adapter, combine, compose, mix, singular
from jaxmix.combining import METHODS
from jaxmix.families import OFT, Delta, LoRA, Replace, Together

from ..laws.draws import KINDS, Module, draw_update, few, normal, tree
from ..laws.running import error
from ..laws.truth import fold_tree
from ..messages import full_text
from . import naive
from .looking import of

MODULES = {"lin": KINDS["wide"], "conv": KINDS["conv2d"], "emb": KINDS["embedding"]}
MODULES |= {"norm": KINDS["norm"], "square": KINDS["square"]}
PARAMS = tree(MODULES, 0)
LINEAR = {"lin": Module("linear", (6, 8)), "more": Module("linear", (9, 5))}
PLAIN = tree(LINEAR, 1)
DENSITY, KEY = 0.6, jax.random.key(5)


def of_kinds(*kinds: str, seed: int = 0, leave: int = 0) -> list[Adapter]:
    """An adapter of each kind; the i-th lacks one of the modules."""
    adapters = []
    for i, kind in enumerate(kinds):
        sites = [site for j, site in enumerate(MODULES) if j != i + leave]
        updates = {site: draw_update(kind, MODULES[site], seed + 7 * i) for site in sites}
        adapters.append(Adapter(updates, (1.0, 0.5, 1.5)[i], f"{kind} {i}"))
    return adapters


def loras(*ranks: int, seed: int = 0) -> list[Adapter]:
    """LoRAs on linear layers, with different scales and strengths."""
    rng = np.random.default_rng(seed)
    return [
        Adapter(
            {
                site: LoRA(normal(rng, rank, m.matrix[1]), normal(rng, m.matrix[0], rank), 0.3 + i)
                for site, m in LINEAR.items()
            },
            strength=1.0 if i else 2.0,
            name=f"lora {i}",
        )
        for i, rank in enumerate(ranks)
    ]


def deltas(params: Mapping[str, Any], adapters: Sequence[Any]) -> dict[str, list[np.ndarray]]:
    """W' − W of each adapter at each leaf, as matrices."""
    out = {}
    for name, leaf in params.items():
        changes = [fold_tree(params, adapter.parts)[name] - leaf for adapter in adapters]
        out[name] = [delta.reshape(len(delta), -1) for delta in changes]
    return out


def expected(params: Mapping[str, Any], adapters: Sequence[Any], formula: Any) -> dict[str, Any]:
    """The params with the formula's delta at each leaf."""
    changes = deltas(params, adapters)
    return {n: leaf + formula(changes[n]).reshape(leaf.shape) for n, leaf in params.items()}


def needs(method: str) -> dict[str, Any]:
    """The options that a method requires."""
    spec = METHODS[method]
    options: dict[str, Any] = {"density": DENSITY} if spec.prunes else {}
    return options | ({"key": KEY} if spec.random else {})


@pytest.mark.parametrize(
    "method", ["linear", "cat", "ties", "magnitude_prune", "breadcrumbs", "knots"]
)
@pytest.mark.parametrize(
    "weights",
    [[1.0, -0.4, 0.7], pytest.param([1.0, 0.4, 0.7], marks=pytest.mark.thorough)],
    ids=["minus", "plus"],
)
def test_all_kinds(method: str, weights: list[float]) -> None:
    """On layers of all types, with biases and norms; some adapters lack some sites."""
    adapters = of_kinds("Together", "OFT", "LoHa", seed=3)
    density = [DENSITY] if METHODS[method].prunes else []
    signs = np.sign(weights)

    def formula(tensors: list[np.ndarray]) -> np.ndarray:
        if method == "knots":
            signed = [s * t for s, t in zip(signs, tensors, strict=True)]
            return naive.knots(signed, np.abs(weights), *density)
        return naive.NAIVE[method](tensors, weights, *density)

    combined = combine(adapters, PARAMS, method=method, weights=weights, **needs(method))
    truth = expected(PARAMS, adapters, formula)
    assert error(compose(PARAMS, combined), truth) < 1e-10
    assert set(combined.updates) == set(MODULES)
    assert all(isinstance(update, Delta) for update in of(combined).values())


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("sce", lambda tensors: naive.sce(tensors, DENSITY)),
        ("model_stock", naive.model_stock),
        ("slerp", lambda tensors: naive.slerp(tensors, [0.3, 0.7])),
    ],
    ids=["sce", "model_stock", "slerp"],
)
def test_methods_that_compute_their_weights(method: str, formula: Any) -> None:
    adapters = of_kinds("DoRA", "LoKr", seed=2)
    weights = {"weights": [0.3, 0.7]} if method == "slerp" else {}
    combined = combine(adapters, PARAMS, method=method, **weights, **needs(method))
    assert error(compose(PARAMS, combined), expected(PARAMS, adapters, formula)) < 1e-10


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_of_other_kinds(method: str) -> None:
    """Each entry is zero or divided by the density, and each key gives one result."""
    adapters = [adapter * 1.0 for adapter in of_kinds("OFT", seed=1)]
    results = [combine(adapters, PARAMS, method=method, density=0.5, key=key) for key in (KEY, KEY)]
    truth = deltas(PARAMS, adapters)
    for site, update in of(results[0]).items():
        np.testing.assert_array_equal(update.weight, of(results[1])[site].weight)
        delta = truth[f"{site}.weight"][0]
        combined = np.asarray(update.weight).reshape(delta.shape)
        kept = combined != 0
        np.testing.assert_allclose(combined[kept], 2 * delta[kept], rtol=1e-9, atol=1e-12)
        assert 0 < kept.sum() < kept.size or site == "norm"


def test_mask_of_a_site_depends_on_its_name_only() -> None:
    """The same key drops the same entries of a site, regardless of other sites."""
    first, second = loras(3, 3)
    alone = [Adapter({"more": of(a)["more"]}, a.strength, a.name) for a in (first, second)]
    for params, method in ((None, "dare_linear"), (PLAIN, "dare_ties"), (None, "dare_ties_svd")):
        on_both = combine([first, second], params, method=method, density=0.5, key=KEY)
        on_one = combine(alone, params, method=method, density=0.5, key=KEY)
        for a, b in zip(
            *map(jax.tree.leaves, (of(on_both)["more"], of(on_one)["more"])), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_sites_have_different_masks() -> None:
    """Two sites of one shape, with one key."""
    first, second = loras(3, 3)
    twins = [Adapter({site: of(a)["lin"] for site in "xy"}, name=a.name) for a in (first, second)]
    combined = combine(twins, method="dare_linear", density=0.5, key=KEY)
    assert ((of(combined)["x"].a == 0) != (of(combined)["y"].a == 0)).any()


@few()
@given(seed=st.integers(0, 99), method=st.sampled_from([*METHODS]), w=st.floats(-2, 2))
def test_negative_weight_negates_the_adapter(seed: int, method: str, w: float) -> None:
    """For every method that takes weights, on factors and on deltas."""
    if not METHODS[method].weighted or method == "slerp":
        return
    a, b = loras(3, 3, seed=seed)
    for params in (None, PLAIN):
        by_weight = combine([a, b], params, method=method, weights=[1.0, w], **needs(method))
        by_adapter = combine([a, -b], params, method=method, weights=[1.0, -w], **needs(method))
        if w == 0 and "ties" in (method, METHODS[method].formula.__name__):
            return  # an adapter with weight 0 still votes by its sign
        assert error(compose(PLAIN, by_weight), compose(PLAIN, by_adapter)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_loras_need_no_params(method: str) -> None:
    """Without the base the result is the same as with it; a mix is combined by its Δ."""
    adapters = [loras(3, 2)[0], mix(*loras(2, 4, seed=4))]
    without_base = combine(adapters, method=method, **needs(method))
    with_base = combine(adapters, PLAIN, method=method, **needs(method))
    assert error(compose(PLAIN, without_base), compose(PLAIN, with_base)) < 1e-10
    kinds = {type(update) for update in of(without_base).values()}
    assert kinds == ({LoRA} if METHODS[method].svd or method == "cat" else {Delta})


def test_exact_sums() -> None:
    """cat, and svd with a sufficient rank, give the weighted sum, which is the mix."""
    adapters = loras(3, 1)
    truth = fold_tree(PLAIN, [adapters[0] * 0.5, adapters[1] * -2.0])
    for how in (
        {"method": "cat"},
        {"method": "svd", "rank": 4},
        {"method": "svd", "rank": "exact"},
    ):
        combined = combine(adapters, weights=[0.5, -2.0], **how)
        assert error(compose(PLAIN, combined), truth) < 1e-12
        assert of(combined)["lin"].a.shape == (4, 8)
    assert of(combine(adapters, method="svd"))["lin"].a.shape == (3, 8)
    assert of(combine(adapters, method="svd", rank=0.5))["lin"].a.shape[0] < 3
    truth = fold_tree(PLAIN, adapters)
    assert error(compose(PLAIN, combine(adapters, PLAIN, method="cat")), truth) < 1e-12


def test_svd_of_loras_makes_no_dense_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("a dense delta was made")

    monkeypatch.setattr(singular, "_dense", refuse)
    combine(loras(3, 1), PLAIN, method="svd", rank=4)
    combine(loras(3, 1), method="cat")
    combine(loras(3, 1), method="knots", density=0.5, rank=4)
    with pytest.raises(RuntimeError, match=full_text("a dense delta was made")):
        combine(loras(3, 1), method="ties_svd", density=0.5)


def test_linear_on_factors() -> None:
    """``Σ √|wγ| Bᵢ · Σ ±√|wγ| Aᵢ``; a single LoRA is unchanged, for any sign."""
    a, b = loras(3, 3)
    combined = of(combine([a, b], method="linear", weights=[0.5, -2.0]))["lin"]
    first, second = (of(x)["lin"] for x in (a, b))
    w = [0.5 * 2.0 * 0.3, 2.0 * 1.3]
    np.testing.assert_allclose(
        combined.a, w[0] ** 0.5 * first.a - w[1] ** 0.5 * second.a, rtol=1e-12
    )
    np.testing.assert_allclose(
        combined.b, w[0] ** 0.5 * first.b + w[1] ** 0.5 * second.b, rtol=1e-12
    )
    for weight in (-1.5, 0.7):
        alone = combine([a], method="linear", weights=[weight])
        assert error(compose(PLAIN, alone), fold_tree(PLAIN, [weight * a])) < 1e-12


def test_biases_of_loras_are_combined() -> None:
    """``lora_bias``, on factors and on deltas; PEFT drops it."""
    rng = np.random.default_rng(0)
    params = {**PLAIN, "lin.bias": normal(rng, 6)}
    a, b = (of(adapter)["lin"] for adapter in loras(2, 2))
    first = Adapter({"lin": LoRA(a.a, a.b, 0.5, bias=normal(rng, 6))}, name="one")
    second = Adapter({"lin": LoRA(b.a, b.b, 0.4)}, name="two")
    truth = params["lin.bias"] - 2.0 * 0.5 * of(first)["lin"].bias
    for base in (None, params):
        for method in ("linear", "svd", "cat"):
            combined = combine([first, second], base, method=method, weights=[-2.0, 1.0])
            np.testing.assert_allclose(
                compose(params, combined)["lin.bias"], truth, rtol=1e-12, atol=1e-12
            )


def test_other_kinds_as_loras() -> None:
    """With a rank the results are LoRAs, except where the weight is not a matrix."""
    adapters = of_kinds("Together", "OFT", seed=3)
    for method in ("ties_svd", "ties", "linear"):
        combined = combine(adapters, PARAMS, method=method, rank="exact", **needs(method))
        name = method.removesuffix("_svd")
        densities = [DENSITY] if name == "ties" else []

        def formula(tensors: Any, name: str = name, densities: Any = densities) -> Any:
            return naive.NAIVE[name](tensors, [1.0, 1.0], *densities)

        truth = expected(PARAMS, adapters, formula)
        assert error(compose(PARAMS, combined), truth) < 1e-10
        kinds = {site: type(update) for site, update in of(combined).items()}
        assert kinds == {site: Replace if site == "norm" else LoRA for site in MODULES}
    assert of(combine(adapters, PARAMS, method="svd", rank=2))["lin"].a.shape == (2, 8)


def test_cat_of_other_low_ranks() -> None:
    """AdaLoRA and a mix of LoRAs are concatenated exactly into a LoRA."""
    ada = Adapter({"lin": draw_update("AdaLoRA", LINEAR["lin"], 0)}, name="ada")
    combined = combine([ada, loras(2)[0]], PLAIN, method="cat")
    assert of(combined)["lin"].a.shape == (2 + 3, 8)
    truth = fold_tree(PLAIN, [ada, loras(2)[0]])
    assert error(compose(PLAIN, combined), truth) < 1e-12


def test_conv1d_keeps_its_orientation() -> None:
    """The result keeps the order (in, out) in which PyTorch stores the weight."""
    rng = np.random.default_rng(0)
    params = {"a.weight": normal(rng, 8, 6), "a.bias": normal(rng, 6)}
    turn = Adapter({"a": OFT(normal(rng, 2, 6, std=0.2))}, name="turn")
    lora = Adapter({"a": LoRA(normal(rng, 2, 8), normal(rng, 6, 2), 0.5, transposed=True)})
    combined = combine([turn, lora], params, method="linear")
    update = of(combined)["a"]
    assert update.weight.shape == (8, 6)
    by_turn, by_lora = (
        np.asarray(compose(params, adapter)["a.weight"]) for adapter in (turn, lora)
    )
    weight = np.asarray(compose(params, combined)["a.weight"])
    np.testing.assert_allclose(
        weight, by_turn + by_lora - params["a.weight"], rtol=1e-12, atol=1e-12
    )


def test_bias_that_only_one_adapter_trains() -> None:
    """A Replace of the bias next to a LoRA without one: the LoRA's δ of the bias is zero."""
    params = {**PLAIN, "lin.bias": np.arange(6.0)}
    first, second = loras(2, 2)
    update = Together((Replace(bias=np.ones(6)), of(first)["lin"]))
    combined = combine(
        [Adapter({"lin": update}), second], params, method="linear", weights=[0.5, 1.0]
    )
    out = compose(params, combined)
    np.testing.assert_allclose(out["lin.bias"], np.arange(6.0) / 2 + 0.5, rtol=1e-14)


@pytest.mark.usefixtures("compiled")
@pytest.mark.thorough
def test_under_jit() -> None:
    """Weights and strengths may be traced."""
    a, b = loras(3, 3)

    def run(weights: Any, strength: Any, method: str) -> Any:
        options = needs(method)
        return compose(PLAIN, combine([a, strength * b], method=method, weights=weights, **options))

    for method in ("linear", "ties", "dare_ties", "svd", "slerp", "breadcrumbs"):
        weights = jnp.array([0.5, 1.2])
        compiled = jax.jit(run, static_argnums=2)(weights, 0.7, method)
        assert error(compiled, jax.tree.map(np.asarray, run([0.5, 1.2], 0.7, method))) < 1e-10


def test_float32_and_half() -> None:
    """The dtype of the arithmetic is at least float32."""
    a, b = loras(3, 3)
    narrow = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), adapter) for adapter in (a, b)]
    for method in ("linear", "svd", "ties"):
        combined = combine(narrow, method=method, **needs(method))
        update = of(combined)["lin"]
        assert (update.a.dtype, update.b.dtype) == (jnp.float32, jnp.float32)


def test_names_and_layouts() -> None:
    nested = {"lin": {"kernel": PLAIN["lin.weight"].T}, "more": {"kernel": PLAIN["more.weight"].T}}
    adapters = loras(3, 3)
    combined = combine(adapters, nested, method="slerp", layout="flax", name="both")
    assert combined.name == "both" and combine(adapters, method="cat").name == "combined"
    truth = compose(PLAIN, combine(adapters, PLAIN, method="slerp"))
    out = compose(nested, combined)
    np.testing.assert_allclose(out["lin"]["kernel"].T, truth["lin.weight"], rtol=1e-12)
