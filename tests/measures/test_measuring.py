"""`measure` on a tree against NumPy, for additive families and a rotation."""

from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError, LayoutError
from jaxmix.families import OFT, LoRA, Replace
from jaxmix.measures import Measures, PairMeasures, SiteMeasures, draw_measures, measure

from ..messages import full_text

RNG = np.random.default_rng(1)
PARAMS = {
    "h.0.q.weight": np.asarray(RNG.normal(size=(6, 4)), np.float32),
    "h.1.q.weight": np.asarray(RNG.normal(size=(6, 4)), np.float32),
    "h.1.q.bias": np.zeros(6, np.float32),
    "norm.weight": np.ones(5, np.float32),
}


def lora(rank: int) -> LoRA:
    """Returns a LoRA for q."""
    a, b = RNG.normal(size=(rank, 4)), RNG.normal(size=(6, rank))
    return LoRA(np.asarray(a, np.float32), np.asarray(b, np.float32), 0.5)


FIRST = Adapter({"h.0.q": lora(1), "h.1.q": lora(2)}, 1.0, "first")
TURNED = OFT(jnp.asarray(RNG.normal(size=(2, 1)), jnp.float32))
SECOND = Adapter(
    {"h.1.q": TURNED, "norm": Replace(weight=np.full(5, 3.0, np.float32))}, 0.5, "second"
)
MIXED = jaxmix.mix(FIRST, SECOND)


def deltas(mixed: jaxmix.Adapter | jaxmix.Mix) -> dict[str, np.ndarray]:
    """Returns W' − W of `compose`, in float64."""
    merged = jaxmix.compose(PARAMS, mixed)
    return {
        name.removesuffix(".weight"): np.asarray(merged[name], float) - np.asarray(weight, float)
        for name, weight in PARAMS.items()
        if name.endswith("weight")
    }


def test_site_measures_match_numpy() -> None:
    """Norm and effective rank are each adapter's alone; shares are those within the mix."""
    steps: list[tuple[int, int]] = []
    measures = measure(MIXED, PARAMS, progress=lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert {name: list(sites) for name, sites in measures.sites.items()} == {
        "first": ["h.0.q", "h.1.q"],
        "second": ["h.1.q", "norm"],
    }
    in_both, after_first = deltas(MIXED), deltas(FIRST)
    for name, alone in (("first", after_first), ("second", deltas(SECOND))):
        for site, measures_of_site in measures.sites[name].items():
            delta = alone[site].reshape(len(alone[site]), -1)
            s = np.linalg.svd(delta, compute_uv=False)
            p = s[s > 1e-5] / s.sum()
            in_mix = in_both[site] - after_first[site] if name == "second" else after_first[site]
            np.testing.assert_allclose(measures_of_site.norm, np.linalg.norm(delta), rtol=1e-5)
            np.testing.assert_allclose(
                measures_of_site.rank, np.exp(-(p * np.log(p)).sum()), rtol=1e-4
            )
            share = np.sum(in_mix * in_both[site]) / np.sum(in_both[site] ** 2)
            np.testing.assert_allclose(measures_of_site.share, share, rtol=1e-4)
    at_q = [measures.sites[name]["h.1.q"].share for name in ("first", "second")]
    assert sum(at_q) == pytest.approx(1) and min(map(abs, at_q)) > 0.01
    for site, energy in measures.energies.items():
        np.testing.assert_allclose(energy, np.sum(in_both[site] ** 2), rtol=1e-5)


def test_pair_measures_match_numpy() -> None:
    """Pairs are measured at the sites where both adapters change the weight."""
    measures = measure(MIXED, PARAMS)
    assert {names: list(sites) for names, sites in measures.pairs.items()} == {
        ("first", "second"): ["h.1.q"]
    }
    a, b = (deltas(entry)["h.1.q"] for entry in (FIRST, SECOND))
    entry = measures.pairs["first", "second"]["h.1.q"]
    cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(entry.cosine, cosine, rtol=1e-4)
    assert entry.signs == np.mean(np.sign(a) == np.sign(b))

    def leading(delta: np.ndarray) -> np.ndarray:
        u, s, _ = np.linalg.svd(delta)
        energy = np.cumsum(s**2) / np.sum(s**2)
        return u[:, : 1 + int(np.sum(energy < 0.9))]

    for side, overlap, angle in (("T", entry.inputs, entry.input_angle), ("", entry.outputs, None)):
        p, q = leading(a.T if side else a), leading(b.T if side else b)
        cosines = np.linalg.svd(p.T @ q, compute_uv=False)
        chance = max(p.shape[1], q.shape[1]) / len(p)
        np.testing.assert_allclose(
            overlap, (np.mean(cosines**2) - chance) / (1 - chance), rtol=1e-3
        )
        if angle is not None:
            np.testing.assert_allclose(angle, np.degrees(np.arccos(cosines.max())), rtol=1e-3)


def test_totals_over_all_sites() -> None:
    """Norms add up as squares, shares are weighted by energy."""
    sites = {"a": SiteMeasures(3.0, 1.0, 0.5), "b": SiteMeasures(4.0, 1.0, -1.0)}
    measures = Measures({"x": sites}, {}, {"a": 6.0, "b": 2.0})
    assert (measures.norm("x"), measures.share("x")) == (5.0, 0.125)
    assert Measures({"x": {}}).share("x") == 0.0


def test_modules_with_other_names_in_the_tree_are_measured() -> None:
    """A fused module is measured as the modules that hold its rows in the tree."""
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    params = {f"{name}.weight": np.ones((4, 4), np.float32) for name in names}
    params["single_transformer_blocks.0.proj_mlp.weight"] = np.ones((4, 4), np.float32)
    fused = LoRA(lora(2).a, np.asarray(RNG.normal(size=(12, 2)), np.float32), 1.0)
    adapter = Adapter({"double_blocks.0.img_attn.qkv": fused}, 1.0, "style")
    other = Adapter({names[0]: LoRA(lora(1).a, np.ones((4, 1), np.float32), 1.0)}, 1.0, "other")
    steps: list[tuple[int, int]] = []
    measures = measure(jaxmix.mix(adapter, other), params, progress=lambda *at: steps.append(at))
    assert sorted(measures.sites["style"]) == sorted(names) and steps[-1] == (3, 3)
    norms = [measures.sites["style"][name].norm for name in names]
    matrix = np.asarray(fused.b, float) @ np.asarray(fused.a, float)
    for norm, rows in zip(norms, np.split(matrix, 3), strict=True):
        assert norm == pytest.approx(np.linalg.norm(rows), rel=1e-5)
    assert list(measures.sites["other"]) == [names[0]]
    assert list(measures.pairs["style", "other"]) == [names[0]]


def test_biases_are_not_measured() -> None:
    """An adapter that changes only biases has no measures."""
    measures = measure(Adapter({"h.1.q": Replace(bias=np.ones(6, np.float32))}, name="b"), PARAMS)
    assert measures == Measures({"b": {}}, {}, {})


def test_missing_site_raises() -> None:
    """A missing site raises the error that compose raises."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  h.7.q: no leaf for its weight; the nearest are "
            "h.1.q.weight, h.0.q.weight, norm.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules."
        ),
    ):
        measure(Adapter({"h.7.q": lora(1)}), PARAMS)


def test_draw_measures_writes_a_picture(tmp_path: Path) -> None:
    """Pictures may show one adapter or two, sites of one adapter only, and pairs without signs."""
    pytest.importorskip("matplotlib")
    measures = measure(MIXED, PARAMS)
    pair = measures.pairs["first", "second"]
    silent = PairMeasures(**{**asdict(pair["h.1.q"]), "signs": None})
    many = {f"h.{i}.q": SiteMeasures(1.0, 2.0, 1.0) for i in range(20)}
    for case in (
        measures,
        Measures(measures.sites, {("first", "second"): {"h.1.q": silent}}, measures.energies),
        Measures({"one": many, "none": {}}, {}, {}),
    ):
        path = draw_measures(case, tmp_path / "x.png")
        assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    with pytest.raises(AdapterError) as caught:
        draw_measures(Measures({"b": {}}), tmp_path / "y.png")
    assert str(caught.value) == (
        "draw_measures got no measures, expected those of at least one site."
    )
