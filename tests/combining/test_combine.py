"""`combine` of adapters of any kinds, against NumPy formulas on the truth's W' − W."""

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

from ..laws.draws import KINDS, Module, few, made, normal, tree
from ..laws.running import error
from ..laws.truth import fold_tree
from . import naive
from .looking import of

MODULES = {"lin": KINDS["wide"], "conv": KINDS["conv2d"], "emb": KINDS["embedding"]}
MODULES |= {"norm": KINDS["norm"], "square": KINDS["square"]}
PARAMS = tree(MODULES, 0)
LINEAR = {"lin": Module("linear", (6, 8)), "more": Module("linear", (9, 5))}
PLAIN = tree(LINEAR, 1)
DENSITY, KEY = 0.6, jax.random.key(5)


def of_kinds(*kinds: str, seed: int = 0, leave: int = 0) -> list[Adapter]:
    """Returns an adapter of each kind on the modules; the i-th leaves one out."""
    adapters = []
    for i, kind in enumerate(kinds):
        sites = [site for j, site in enumerate(MODULES) if j != i + leave]
        updates = {site: made(kind, MODULES[site], seed + 7 * i) for site in sites}
        adapters.append(Adapter(updates, (1.0, 0.5, 1.5)[i], f"{kind} {i}"))
    return adapters


def loras(*ranks: int, seed: int = 0) -> list[Adapter]:
    """Returns LoRAs on linear layers, with different scales and strengths."""
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
    """Returns each adapter's difference at each leaf, as matrices."""
    out = {}
    for name, leaf in params.items():
        each = [fold_tree(params, one.parts)[name] - leaf for one in adapters]
        out[name] = [delta.reshape(len(delta), -1) for delta in each]
    return out


def expected(params: Mapping[str, Any], adapters: Sequence[Any], formula: Any) -> dict[str, Any]:
    """Returns the params with the formula's difference at each leaf."""
    each = deltas(params, adapters)
    return {n: leaf + formula(each[n]).reshape(leaf.shape) for n, leaf in params.items()}


def needs(method: str) -> dict[str, Any]:
    """Returns the arguments that a method requires."""
    found = METHODS[method]
    more: dict[str, Any] = {"density": DENSITY} if found.prunes else {}
    return more | ({"key": KEY} if found.random else {})


@pytest.mark.parametrize(
    "method", ["linear", "cat", "ties", "magnitude_prune", "breadcrumbs", "knots"]
)
@pytest.mark.parametrize(
    "weights",
    [[1.0, -0.4, 0.7], pytest.param([1.0, 0.4, 0.7], marks=pytest.mark.thorough)],
    ids=["minus", "plus"],
)
def test_methods_match_the_formulas_for_all_kinds(method: str, weights: list[float]) -> None:
    """On layers of all kinds, biases and norms, where adapters lack some of the sites."""
    adapters = of_kinds("Together", "OFT", "LoHa", seed=3)
    density = [DENSITY] if METHODS[method].prunes else []
    signs = np.sign(weights)

    def formula(tensors: list[np.ndarray]) -> np.ndarray:
        if method == "knots":
            signed = [s * t for s, t in zip(signs, tensors, strict=True)]
            return naive.knots(signed, np.abs(weights), *density)
        return naive.NAIVE[method](tensors, weights, *density)

    made_of = combine(adapters, PARAMS, method=method, weights=weights, **needs(method))
    truth = expected(PARAMS, adapters, formula)
    assert error(compose(PARAMS, made_of), truth) < 1e-10
    assert set(made_of.updates) == set(MODULES)
    assert all(isinstance(update, Delta) for update in of(made_of).values())


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("sce", lambda tensors: naive.sce(tensors, DENSITY)),
        ("model_stock", naive.model_stock),
        ("slerp", lambda tensors: naive.slerp(tensors, [0.3, 0.7])),
    ],
    ids=["sce", "model_stock", "slerp"],
)
def test_methods_that_choose_their_own_weights(method: str, formula: Any) -> None:
    """The result matches the formula, which takes no weights."""
    adapters = of_kinds("DoRA", "LoKr", seed=2)
    weights = {"weights": [0.3, 0.7]} if method == "slerp" else {}
    made_of = combine(adapters, PARAMS, method=method, **weights, **needs(method))
    assert error(compose(PARAMS, made_of), expected(PARAMS, adapters, formula)) < 1e-10


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_masks_entries_of_other_kinds(method: str) -> None:
    """Each entry is zero or divided by the density, and a key determines the result."""
    adapters = [one * 1.0 for one in of_kinds("OFT", seed=1)]
    runs = [combine(adapters, PARAMS, method=method, density=0.5, key=key) for key in (KEY, KEY)]
    truth = deltas(PARAMS, adapters)
    for site, update in of(runs[0]).items():
        np.testing.assert_array_equal(update.weight, of(runs[1])[site].weight)
        whole = truth[f"{site}.weight"][0]
        found = np.asarray(update.weight).reshape(whole.shape)
        kept = found != 0
        np.testing.assert_allclose(found[kept], 2 * whole[kept], rtol=1e-9, atol=1e-12)
        assert 0 < kept.sum() < kept.size or site == "norm"


def test_masks_of_a_site_do_not_depend_on_other_sites() -> None:
    """The same key masks the same entries of a site, with or without other sites."""
    one, two = loras(3, 3)
    alone = [Adapter({"more": of(a)["more"]}, a.strength, a.name) for a in (one, two)]
    for params, method in ((None, "dare_linear"), (PLAIN, "dare_ties"), (None, "dare_ties_svd")):
        whole = combine([one, two], params, method=method, density=0.5, key=KEY)
        part = combine(alone, params, method=method, density=0.5, key=KEY)
        for a, b in zip(*map(jax.tree.leaves, (of(whole)["more"], of(part)["more"])), strict=True):
            np.testing.assert_array_equal(a, b)


def test_sites_have_different_masks() -> None:
    """Sites of one shape have different masks with one key."""
    one, two = loras(3, 3)
    twins = [Adapter({site: of(a)["lin"] for site in "xy"}, name=a.name) for a in (one, two)]
    made_of = combine(twins, method="dare_linear", density=0.5, key=KEY)
    assert ((of(made_of)["x"].a == 0) != (of(made_of)["y"].a == 0)).any()


@few()
@given(seed=st.integers(0, 99), method=st.sampled_from([*METHODS]), w=st.floats(-2, 2))
def test_negative_weight_equals_the_negated_adapter(seed: int, method: str, w: float) -> None:
    """For every method with weights, on factors and on dense differences."""
    if not METHODS[method].weighted or method == "slerp":
        return
    a, b = loras(3, 3, seed=seed)
    for params in (None, PLAIN):
        one = combine([a, b], params, method=method, weights=[1.0, w], **needs(method))
        two = combine([a, -b], params, method=method, weights=[1.0, -w], **needs(method))
        if w == 0 and "ties" in (method, METHODS[method].formula.__name__):
            return  # what counts for nothing still votes, by its sign
        assert error(compose(PLAIN, one), compose(PLAIN, two)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_loras_need_no_params(method: str) -> None:
    """Methods that need only factors match the result with the base; a mix has only its Δ."""
    adapters = [loras(3, 2)[0], mix(*loras(2, 4, seed=4))]
    bare = combine(adapters, method=method, **needs(method))
    combined = combine(adapters, PLAIN, method=method, **needs(method))
    assert error(compose(PLAIN, bare), compose(PLAIN, combined)) < 1e-10
    kinds = {type(update) for update in of(bare).values()}
    assert kinds == ({LoRA} if METHODS[method].svd or method == "cat" else {Delta})


def test_cat_and_svd_of_sufficient_rank_are_exact() -> None:
    """Both equal the weighted sum, which equals the mix."""
    adapters = loras(3, 1)
    truth = fold_tree(PLAIN, [adapters[0] * 0.5, adapters[1] * -2.0])
    for how in (
        {"method": "cat"},
        {"method": "svd", "rank": 4},
        {"method": "svd", "rank": "exact"},
    ):
        made_of = combine(adapters, weights=[0.5, -2.0], **how)
        assert error(compose(PLAIN, made_of), truth) < 1e-12
        assert of(made_of)["lin"].a.shape == (4, 8)
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
    with pytest.raises(RuntimeError, match="a dense delta"):
        combine(loras(3, 1), method="ties_svd", density=0.5)


def test_linear_on_factors() -> None:
    """``Σ √|wγ| Bᵢ · Σ ±√|wγ| Aᵢ``; one LoRA alone is itself, for any sign."""
    a, b = loras(3, 3)
    found = of(combine([a, b], method="linear", weights=[0.5, -2.0]))["lin"]
    one, two = (of(x)["lin"] for x in (a, b))
    w = [0.5 * 2.0 * 0.3, 2.0 * 1.3]
    np.testing.assert_allclose(found.a, w[0] ** 0.5 * one.a - w[1] ** 0.5 * two.a, rtol=1e-12)
    np.testing.assert_allclose(found.b, w[0] ** 0.5 * one.b + w[1] ** 0.5 * two.b, rtol=1e-12)
    for weight in (-1.5, 0.7):
        alone = combine([a], method="linear", weights=[weight])
        assert error(compose(PLAIN, alone), fold_tree(PLAIN, [weight * a])) < 1e-12


def test_biases_of_loras_are_combined() -> None:
    """``lora_bias`` is combined on factors and on dense differences; PEFT drops it."""
    rng = np.random.default_rng(0)
    params = {**PLAIN, "lin.bias": normal(rng, 6)}
    a, b = (of(one)["lin"] for one in loras(2, 2))
    one = Adapter({"lin": LoRA(a.a, a.b, 0.5, bias=normal(rng, 6))}, name="one")
    two = Adapter({"lin": LoRA(b.a, b.b, 0.4)}, name="two")
    truth = params["lin.bias"] - 2.0 * 0.5 * of(one)["lin"].bias
    for base in (None, params):
        for method in ("linear", "svd", "cat"):
            made_of = combine([one, two], base, method=method, weights=[-2.0, 1.0])
            np.testing.assert_allclose(
                compose(params, made_of)["lin.bias"], truth, rtol=1e-12, atol=1e-12
            )


def test_rank_makes_loras_of_other_kinds() -> None:
    """With a rank the result has LoRAs, and updates that are not matrices stay."""
    adapters = of_kinds("Together", "OFT", seed=3)
    for method in ("ties_svd", "ties", "linear"):
        made_of = combine(adapters, PARAMS, method=method, rank="exact", **needs(method))
        name = method.removesuffix("_svd")
        more = [DENSITY] if name == "ties" else []

        def formula(tensors: Any, name: str = name, more: Any = more) -> Any:
            return naive.NAIVE[name](tensors, [1.0, 1.0], *more)

        truth = expected(PARAMS, adapters, formula)
        assert error(compose(PARAMS, made_of), truth) < 1e-10
        kinds = {site: type(update) for site, update in of(made_of).items()}
        assert kinds == {site: Replace if site == "norm" else LoRA for site in MODULES}
    assert of(combine(adapters, PARAMS, method="svd", rank=2))["lin"].a.shape == (2, 8)


def test_cat_of_low_rank_kinds_is_exact() -> None:
    """An AdaLoRA and a mix of LoRAs are concatenated to one LoRA without loss."""
    ada = Adapter({"lin": made("AdaLoRA", LINEAR["lin"], 0)}, name="ada")
    made_of = combine([ada, loras(2)[0]], PLAIN, method="cat")
    assert of(made_of)["lin"].a.shape == (2 + 3, 8)
    truth = fold_tree(PLAIN, [ada, loras(2)[0]])
    assert error(compose(PLAIN, made_of), truth) < 1e-12


def test_conv1d_keeps_its_axis_order() -> None:
    """The result has the order (in, out) in which PyTorch stores the weight."""
    rng = np.random.default_rng(0)
    params = {"a.weight": normal(rng, 8, 6), "a.bias": normal(rng, 6)}
    turn = Adapter({"a": OFT(normal(rng, 2, 6, std=0.2))}, name="turn")
    lora = Adapter({"a": LoRA(normal(rng, 2, 8), normal(rng, 6, 2), 0.5, transposed=True)})
    made_of = combine([turn, lora], params, method="linear")
    update = of(made_of)["a"]
    assert update.weight.shape == (8, 6)
    one, two = (np.asarray(compose(params, one)["a.weight"]) for one in (turn, lora))
    found = np.asarray(compose(params, made_of)["a.weight"])
    np.testing.assert_allclose(found, one + two - params["a.weight"], rtol=1e-12, atol=1e-12)


def test_bias_of_a_single_adapter() -> None:
    """A Replace next to a LoRA: the other adapter's difference is zero."""
    params = {**PLAIN, "lin.bias": np.arange(6.0)}
    one, two = loras(2, 2)
    both = Together((Replace(bias=np.ones(6)), of(one)["lin"]))
    made_of = combine([Adapter({"lin": both}), two], params, method="linear", weights=[0.5, 1.0])
    composed = compose(params, made_of)
    np.testing.assert_allclose(composed["lin.bias"], np.arange(6.0) / 2 + 0.5, rtol=1e-14)


@pytest.mark.usefixtures("compiled")
def test_weights_may_be_traced() -> None:
    """Weights and strengths are arguments of the program, on factors and on dense differences."""
    a, b = loras(3, 3)

    def run(weights: Any, strength: Any, method: str) -> Any:
        more = needs(method)
        return compose(PLAIN, combine([a, strength * b], method=method, weights=weights, **more))

    for method in ("linear", "ties", "dare_ties", "svd", "slerp", "breadcrumbs"):
        weights = jnp.array([0.5, 1.2])
        one = jax.jit(run, static_argnums=2)(weights, 0.7, method)
        assert error(one, jax.tree.map(np.asarray, run([0.5, 1.2], 0.7, method))) < 1e-10


def test_arithmetic_is_float32_or_wider() -> None:
    """The result has the dtype of the arithmetic."""
    a, b = loras(3, 3)
    half = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), one) for one in (a, b)]
    for method in ("linear", "svd", "ties"):
        made_of = combine(half, method=method, **needs(method))
        update = of(made_of)["lin"]
        assert (update.a.dtype, update.b.dtype) == (jnp.float32, jnp.float32)


def test_names_and_layouts() -> None:
    nested = {"lin": {"kernel": PLAIN["lin.weight"].T}, "more": {"kernel": PLAIN["more.weight"].T}}
    adapters = loras(3, 3)
    made_of = combine(adapters, nested, method="slerp", layout="flax", name="both")
    assert made_of.name == "both" and combine(adapters, method="cat").name == "combined"
    truth = compose(PLAIN, combine(adapters, PLAIN, method="slerp"))
    composed = compose(nested, made_of)
    np.testing.assert_allclose(composed["lin"]["kernel"].T, truth["lin.weight"], rtol=1e-12)
