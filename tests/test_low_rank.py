"""`to_lora`: any mix as one LoRA, against the naive fold and NumPy's SVD."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmix
from jaxmix import Adapter, compose, mix, singular, to_lora
from jaxmix.errors import AdapterError, LayoutError, ShapeError
from jaxmix.families import OFT, AdaLoRA, Delta, LoHa, LoRA, Replace, Together

from .combining.looking import of
from .families.table import ROWS
from .laws.draws import KINDS, Module, adapters, draw_update, normal, tree, trees
from .laws.running import composed, error
from .laws.truth import fold_tree
from .messages import full_text, tied_embedding, ties
from .uncompiled import uncompiled

# The first row of each family; all rows with HYPOTHESIS_PROFILE=long.
SOME = list({name.split()[0]: name for name in reversed(ROWS)}.values())
CHOSEN = list(ROWS) if os.environ.get("HYPOTHESIS_PROFILE") == "long" else SOME

WIDE = Module("linear", (12, 20), True)
PARAMS = tree({"a": WIDE, "b": KINDS["conv2d"]}, 0)


@pytest.fixture(autouse=True)
def float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """Enables float64 in JAX; tests run uncompiled, except those that use `compiled`."""
    with jax.enable_x64(True), uncompiled(apply="compiled" not in request.fixturenames):
        yield


@pytest.fixture
def compiled() -> None:
    """The test runs as users run it, with compiled functions."""


def lora(seed: int, rank: int, shape: tuple[int, int] = (12, 20), **config: Any) -> LoRA:
    rng = np.random.default_rng(seed)
    return LoRA(normal(rng, rank, shape[1]), normal(rng, shape[0], rank), 0.5, **config)


def at(update: Any, site: str = "a", name: str = "one") -> Adapter:
    return Adapter({site: update}, name=name)


@given(data=st.data(), modules_and_params=trees())
def test_exact_rank_gives_the_mix(data: st.DataObject, modules_and_params: Any) -> None:
    """A LoRA of the rank of W' − W equals `compose`, for mixes of all kinds on all layers."""
    modules, params = modules_and_params
    mixed = mix(*data.draw(adapters(modules)))
    result = to_lora(mixed, params)
    truth = fold_tree(params, mixed.parts)
    assert error(compose(params, result), truth) < 1e-11
    for site, update in of(result).items():
        assert isinstance(update, LoRA | Replace), site


def test_mix_of_three_kinds_at_full_rank() -> None:
    """OFT, LoRA and LoHa, also with an integer rank, to 1e-12."""
    kinds = ("OFT", "LoRA", "LoHa")
    mixed = mix(*(at(draw_update(kind, WIDE, 1), name=kind) for kind in kinds))
    truth = fold_tree(PARAMS, mixed.parts)
    for rank in (12, None, "exact", 15):
        result = to_lora(mixed, PARAMS, rank=rank)
        assert error(compose(PARAMS, result), truth) < 1e-12
    shapes = [of(result)["a"].a.shape, of(result)["a"].b.shape]
    assert shapes == [(15, 20), (12, 15)]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_result_is_the_best_of_its_rank(rank: int) -> None:
    """The reported error equals that of NumPy's SVD of W' − W."""
    mixed = mix(
        at(draw_update("OFT", WIDE, 1), name="x"), 0.7 * at(draw_update("LoHa", WIDE, 2), name="y")
    )
    delta = fold_tree(PARAMS, mixed.parts)["a.weight"] - PARAMS["a.weight"]
    s = np.linalg.svd(delta, compute_uv=False)
    best = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
    result, errors = to_lora(mixed, PARAMS, rank=rank, with_errors=True)
    update = of(result)["a"]
    assert (update.scale, update.a.shape, update.b.shape) == (1.0, (rank, 20), (12, rank))
    distance = np.linalg.norm(delta - update.b @ update.a) / np.linalg.norm(delta)
    np.testing.assert_allclose(distance, best, rtol=1e-9)
    np.testing.assert_allclose(errors["a"], best, rtol=1e-9)
    assert type(errors["a"]) is float


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_smallest_rank_that_keeps_a_share(share: float) -> None:
    mixed = at(draw_update("LoKr", WIDE, 3))
    delta = fold_tree(PARAMS, [mixed])["a.weight"] - PARAMS["a.weight"]
    s2 = np.linalg.svd(delta, compute_uv=False) ** 2
    rank = next(r for r in range(1, 13) if s2[:r].sum() >= share * s2.sum())
    result, errors = to_lora(mixed, PARAMS, rank=share, with_errors=True)
    assert of(result)["a"].a.shape == (rank, 20)
    assert errors["a"] ** 2 <= 1 - share


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if i % 3 == 0 else [pytest.mark.thorough])
        for i, name in enumerate(CHOSEN)
    ],
)
def test_every_family(name: str) -> None:
    """Each row of the families' table becomes an exact LoRA, at a strength other than 1."""
    row = ROWS[name]
    leaves = row.leaves(1)
    params = {"m.weight": leaves.weight, "m.bias": leaves.bias}
    if row.shape[0] != leaves.bias.size or len(row.weight) == 1:
        params["m.bias"] = leaves.bias[: row.shape[0]]
    adapter = 0.6 * Adapter({"m": row.update(row.factors(2))}, name="one")
    assert error(composed(params, to_lora(adapter, params)), composed(params, adapter)) < 1e-11


def forbid_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every later computation of a dense Δ raise."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError("a dense delta was made")

    monkeypatch.setattr(singular, "_dense", refuse)
    monkeypatch.setattr("jaxmix.effects._difference", refuse)


def test_low_ranks_make_no_dense_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 16 from two rank-8 LoRAs, and other low ranks, without a dense Δ and without W."""
    forbid_dense(monkeypatch)
    params = tree({"a": Module("linear", (40, 50))}, 0)
    rng = np.random.default_rng(3)
    b1, a1, b2, a2 = (normal(rng, *shape) for shape in ((40, 2), (2, 50), (40, 3), (3, 50)))
    updates = {
        "x": lora(1, 8, (40, 50)),
        "y": lora(2, 8, (40, 50)),
        "ada": AdaLoRA(normal(rng, 3, 50), normal(rng, 40, 3), normal(rng, 3), 0.7),
        "loha": LoHa(b1, a1, b2, a2, 0.3),
    }
    for names, rank in ((("x", "y"), 16), (("x", "ada", "loha", "y"), 25), (("x", "y"), None)):
        mixed = mix(*(0.8 * at(updates[name], name=name) for name in names))
        result, errors = to_lora(mixed, params, rank=rank, with_errors=True)
        assert of(result)["a"].a.shape == (rank or 16, 50)
        assert errors == {"a": pytest.approx(0, abs=1e-14)}
        assert error(compose(params, result), fold_tree(params, mixed.parts)) < 1e-12


def test_dense_delta_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the previous test can fail."""
    forbid_dense(monkeypatch)
    for kind in ("SHiRA", "OFT"):
        with pytest.raises(RuntimeError, match=full_text("a dense delta was made")):
            to_lora(at(draw_update(kind, WIDE, 1)), PARAMS, rank=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "family",
    ["LoRA", "OFT", "Together"]
    + [
        pytest.param(family, marks=pytest.mark.thorough)
        for family in ("AdaLoRA", "LoHa", "LoKr", "SHiRA", "DoRA")
    ],
)
def test_loras_have_the_properties_of_their_layers(kind: str, family: str) -> None:
    """The LoRA has the kernel, embedding flag and bias that PEFT would save."""
    module = KINDS[kind]
    if family == "Replace":
        return
    params = tree({"m": module}, 5)
    adapter = Adapter({"m": draw_update(family, module, 2)}, name=family)
    update = of(to_lora(adapter, params))["m"]
    if module.kind == "norm":
        assert isinstance(update, Replace)
        return
    assert isinstance(update, LoRA)
    assert update.kernel == module.kernel
    has_flag = family in ("LoRA", "DoRA", "OFT", "Together")
    assert update.embedding == (module.kind == "embedding" and has_flag)
    has_bias = of(adapter)["m"].has_bias
    assert (update.bias is not None) == has_bias


def test_changed_bias_alone_is_a_replace() -> None:
    """Where the weight is unchanged there is no LoRA to hold the bias."""
    adapter = at(Replace(bias=np.ones(12)))
    result, errors = to_lora(0.5 * adapter, PARAMS, with_errors=True)
    assert errors == {}
    update = of(result)["a"]
    assert isinstance(update, Replace) and update.weight is None
    np.testing.assert_allclose(np.asarray(update.bias), 0.5 * PARAMS["a.bias"] + 0.5, rtol=1e-14)


def test_kernels_of_flax_and_conv1d() -> None:
    """Leaves in the order (in, out): a Flax kernel, and GPT-2's Conv1D in PyTorch."""
    weight = tree({"a": Module("linear", (12, 20))}, 1)["a.weight"]
    mixed = mix(at(draw_update("OFT", WIDE, 1), name="x"), at(lora(1, 3), name="y"))
    truth = fold_tree({"a.weight": weight}, mixed.parts)["a.weight"]
    flax = {"a": {"kernel": weight.T}}
    ours = compose(flax, to_lora(mixed, flax))
    np.testing.assert_allclose(ours["a"]["kernel"].T, truth, rtol=1e-11, atol=1e-11)
    # A square Conv1D: only the update determines its orientation.
    square = tree({"a": KINDS["square"]}, 1)["a.weight"]
    adapter = at(lora(1, 3, (6, 6), transposed=True))
    result = to_lora(adapter, {"a.weight": square})
    assert of(result)["a"].transposed
    ours, theirs = (compose({"a.weight": square}, x) for x in (result, adapter))
    np.testing.assert_allclose(ours["a.weight"], theirs["a.weight"], rtol=1e-12, atol=1e-12)


def test_layout_with_axes() -> None:
    """A leaf with axes of heads, and one that holds two sites."""
    weight = tree({"a": Module("linear", (12, 20))}, 1)["a.weight"]
    params = {"qk": np.stack([weight, 2 * weight]), "heads": weight.reshape(3, 4, 20)}
    rules = (
        jaxmix.Rule("q", "qk", index="0"),
        jaxmix.Rule("k", "qk", index="1"),
        jaxmix.Rule("v", "heads", "h d i -> (h d) i"),
    )
    layout = jaxmix.Layout("mine", rules)
    updates = {site: lora(i, 3) for i, site in enumerate("qkv")}
    adapter = Adapter(updates)
    result = to_lora(adapter, params, layout=layout, rank=3)
    ours, theirs = (compose(params, x, layout=layout) for x in (result, adapter))
    assert error(ours, theirs) < 1e-12 < error(ours, params)


def test_small_change_of_a_large_weight_is_exact() -> None:
    """Additive changes are not computed as a difference of weights, which float32 would round."""
    params = {"a.weight": np.full((12, 20), 1e4, np.float32)}
    delta = normal(np.random.default_rng(0), 12, 20).astype(np.float32) * 1e-4
    result = to_lora(at(Delta(delta)), params)
    update = of(result)["a"]
    np.testing.assert_allclose(update.b @ update.a, delta, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_does_not_increase_the_rank(dtype: Any) -> None:
    """Two rotations of a large weight that cancel, and a LoRA."""
    rng = np.random.default_rng(1)
    generators = normal(rng, 5, 6, std=0.2).astype(dtype)
    params = {"a.weight": normal(rng, 30, 20, std=1e4).astype(dtype)}
    thin = LoRA(normal(rng, 2, 20).astype(dtype), normal(rng, 30, 2).astype(dtype), 1.0)
    turns = [at(OFT(generators), name="there"), at(OFT(-generators), name="back")]
    result = to_lora(mix(*turns, at(thin)), params)
    assert of(result)["a"].a.shape[0] == 2
    assert of(result)["a"].a.dtype == dtype
    # A true rank is not mistaken for rounding.
    assert of(to_lora(turns[0], params))["a"].a.shape[0] == 20


def test_half_precision_is_computed_in_float32() -> None:
    params = {"a.weight": jnp.asarray(PARAMS["a.weight"], jnp.bfloat16)}
    update = of(to_lora(at(lora(1, 3)), params, rank=3))["a"]
    assert (update.a.dtype, update.b.dtype) == (jnp.float32, jnp.float32)


def test_unchanged_weight_gives_rank_one_of_zeros() -> None:
    for rank in (None, 0.9, 2):
        result, errors = to_lora(0.0 * at(lora(1, 3)), PARAMS, rank=rank, with_errors=True)
        assert of(result)["a"].a.shape[0] == (2 if rank == 2 else 1)
        assert not np.any(of(result)["a"].b @ of(result)["a"].a)
        assert errors == {"a": 0.0}
    assert to_lora(mix(), PARAMS).sites == ()


def test_progress_is_reported_after_each_site() -> None:
    steps: list[tuple[int, int]] = []
    both = {"a": lora(1, 3), "b": lora(2, 3)}
    params = {"a.weight": PARAMS["a.weight"], "b.weight": PARAMS["a.weight"]}
    to_lora(Adapter(both), params, rank=2, progress=lambda *at: steps.append(at))
    assert steps == [(1, 2), (2, 2)]


def test_names() -> None:
    adapter = at(lora(1, 3), name="style")
    assert to_lora(adapter, PARAMS).name == "style"
    assert to_lora(mix(adapter, adapter.renamed("other")), PARAMS).name == f"{adapter.name}+other"
    assert to_lora(adapter, PARAMS, name="new").name == "new"


@pytest.mark.usefixtures("compiled")
def test_under_jit() -> None:
    """With an integer rank, strengths and params may be traced."""
    adapter = at(draw_update("OFT", WIDE, 1))

    @jax.jit
    def run(params: Any, s: Any) -> Any:
        result, errors = to_lora(s * adapter, params, rank=12, with_errors=True)
        return compose(params, result), errors

    out, errors = run(PARAMS, 0.5)
    assert error(out, fold_tree(PARAMS, [0.5 * adapter])) < 1e-12
    assert float(errors["a"]) < 1e-12


def test_over_devices() -> None:
    """A leaf sharded over several devices."""
    mesh = jax.make_mesh((2,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"a.weight": jax.device_put(PARAMS["a.weight"].astype(np.float32), sharding)}
    mixed = mix(at(draw_update("OFT", WIDE, 1), name="x"), at(lora(1, 3), name="y"))
    sharded = of(to_lora(mixed, params, rank=12))["a"]
    unsharded = of(to_lora(mixed, jax.tree.map(np.asarray, params), rank=12))["a"]
    np.testing.assert_allclose(
        sharded.b @ sharded.a, unsharded.b @ unsharded.a, rtol=1e-5, atol=1e-5
    )


def test_randomised_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The randomised SVD is near the optimum on a decaying spectrum, and reports its error."""
    monkeypatch.setattr(singular, "LARGE", 60)
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(normal(rng, 100, 80))
    v, _ = np.linalg.qr(normal(rng, 80, 80))
    s = 0.9 ** np.arange(80)
    delta = (u * s) @ v.T
    params = {"a.weight": np.zeros((100, 80))}
    best = np.sqrt((s[5:] ** 2).sum() / (s**2).sum())
    factors = {}
    for key in (None, jax.random.key(0), jax.random.key(1)):
        result, errors = to_lora(at(Delta(delta)), params, rank=5, key=key, with_errors=True)
        update = of(result)["a"]
        distance = np.linalg.norm(delta - update.b @ update.a) / np.linalg.norm(delta)
        np.testing.assert_allclose(errors["a"], distance, rtol=1e-9)
        assert best * (1 - 1e-9) <= distance < 1.001 * best
        factors[None if key is None else int(jax.random.key_data(key)[-1])] = np.asarray(update.a)
    assert len(factors) == 3
    assert np.abs(factors[0] - factors[1]).max() > 0
    # A rank that is not small relative to the matrix gets an exact SVD.
    exact = to_lora(at(Delta(delta)), params, rank=11, key=jax.random.key(0))
    unkeyed = to_lora(at(Delta(delta)), params, rank=11)
    np.testing.assert_array_equal(of(exact)["a"].a, of(unkeyed)["a"].a)


def test_bad_input() -> None:
    adapter = at(lora(1, 3))
    with pytest.raises(
        AdapterError,
        match=full_text(
            "to_lora got a list, expected an adapter or a mix. Write to_lora(mix(a, b), params)."
        ),
    ):
        to_lora([adapter], PARAMS)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for rank in (0, -1, 1.0, 0.0, 1.5, True, "all", float("nan")):
        message = (
            f"a rank is {rank!r}, expected a positive integer, a share of the energy between 0 and "
            "1, such as 0.99, or None for the effect's own."
        )
        with pytest.raises(AdapterError, match=full_text(message)):
            to_lora(adapter, PARAMS, rank=rank)  # pyright: ignore
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  nowhere: no leaf for its weight; the nearest are "
            "b.weight, a.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        to_lora(at(lora(1, 3), "nowhere"), PARAMS)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  a: lora_A has shape (3, 21), expected (3, 20) from weight "
            "(12, 20)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size?"
        ),
    ):
        to_lora(at(lora(1, 3, (12, 21))), PARAMS)
    tied = {"model.embed_tokens.weight": np.ones((12, 20)), "model.norm.weight": np.ones(20)}
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding())),
    ):
        to_lora(at(lora(1, 3), "model.embed_tokens"), tied)


@pytest.mark.parametrize("kind", ["low rank", "dense", "zero"])
def test_rows_of_a_leaf_are_one_site(kind: str) -> None:
    """Changes of parts of a fused weight become one LoRA of the whole weight."""
    draw = np.random.default_rng(0)
    base = {
        "double_blocks.0.img_attn.qkv.weight": draw.normal(size=(12, 6)),
        "double_blocks.0.img_attn.qkv.bias": draw.normal(size=12),
        "double_blocks.0.img_attn.proj.weight": draw.normal(size=(4, 6)),
    }
    strength = 0.0 if kind == "zero" else 1.0
    draw_update = {"dense": lambda: Delta(draw.normal(size=(4, 6)))}.get(
        kind, lambda: LoRA(draw.normal(size=(2, 6)), draw.normal(size=(4, 2)), strength)
    )
    at = "transformer_blocks.0.attn"
    first = jaxmix.Adapter(
        {f"{at}.to_q": draw_update(), f"{at}.to_out.0": draw_update()}, name="first"
    )
    bias = Together((draw_update(), Delta(bias=strength * draw.normal(size=4))))
    # k and the whole weight: the second adapter's update is cut where the first changes parts.
    whole = LoRA(draw.normal(size=(2, 6)), draw.normal(size=(12, 2)), strength)
    second = jaxmix.Adapter({"double_blocks.0.img_attn.qkv": whole}, name="second")
    third = jaxmix.Adapter({f"{at}.to_k": bias}, name="third")
    with jax.enable_x64(True):
        for parts in ([first, second, third], [first, third]):
            mixed = jaxmix.mix(*parts)
            result, errors = jaxmix.to_lora(mixed, base, with_errors=True)
            assert max(errors.values()) < 1e-12
            assert not [site for site in result.sites if "[" in site]
            actual, expected = jaxmix.compose(base, result), jaxmix.compose(base, mixed)
            for name, leaf in expected.items():
                np.testing.assert_allclose(actual[name], leaf, atol=1e-10)
    with jax.enable_x64(True):
        rank_one = jaxmix.to_lora(jaxmix.mix(first, second, third), base, rank=1)
    ranks = {site: update.a.shape[0] for site, update in rank_one.updates.items()}  # pyright: ignore
    assert ranks["double_blocks.0.img_attn.qkv"] == 1
