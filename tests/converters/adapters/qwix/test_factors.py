"""Pairs of factors as LoRAs: matrices, einsums, and stacks of layers."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.qwix import qwix_adapter
from jaxmix.converters.adapters.qwix.factors import updates_of
from jaxmix.converters.adapters.qwix.pairs import Pair
from jaxmix.errors import ShapeError

from ....messages import full_text
from ....uncompiled import uncompiled
from .trees import drawn

L, N, K, D, H, F, R = 3, 4, 2, 10, 6, 7, 2


def stacked(axis: int, layers: int = 4, rank: int = 2) -> dict[str, np.ndarray]:
    """Returns MaxText's factors of a scanned query (emb 6, heads 3, head 5)."""
    b = drawn(rank, layers, 3, 5, seed=1)
    a = drawn(6, layers, rank)
    if axis == 0:
        a, b = a.swapaxes(0, 1), b.swapaxes(0, 1)
    leaf = "params/params/decoder/layers/self_attention/query/kernel"
    return {f"{leaf}_lora_a": a, f"{leaf}_lora_b": b}


@pytest.mark.parametrize("axis", [0, 1])
def test_each_stacked_layer_is_a_site(axis):
    """Layers are stacked by ``ilr,rlo->ilo`` or ``lir,lro->lio``; a layout finds the kernel."""
    tree = stacked(axis)
    a, b = tree.values()
    adapter = qwix_adapter(tree, alpha=3)
    assert adapter.sites[1] == "params.decoder.layers.1.self_attention.query"
    pattern = "ilr,rlnh->ilnh" if axis else "lir,lrnh->linh"
    delta = 1.5 * np.einsum(pattern, a, b)
    kernel = drawn(*delta.shape, seed=2)
    rule = jaxmix.Rule(
        r"params\.decoder\.layers\.(\d+)\.self_attention\.query",
        "kernel",
        "d n h -> (n h) d",
        r":, \1" if axis else r"\1",
    )
    with jax.enable_x64(True):
        layout = jaxmix.Layout("maxtext", (rule,))
        composed = jaxmix.compose({"kernel": kernel}, [adapter], layout=layout)
        np.testing.assert_allclose(np.asarray(composed["kernel"]), kernel + delta, atol=1e-12)


def test_ambiguous_layer_axis_must_be_given():
    """If ranks and layers are equal, the user must give the layers' axis."""
    tree = {"layers.w_lora_a": drawn(2, 2, 2), "layers.w_lora_b": drawn(2, 2, 2, seed=1)}
    a, b = tree.values()
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.w: (2, 2, 2) and (2, 2, 2): either axis may be "
            "that of the layers\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(tree, alpha=1)
    for axis, pattern in ((0, "lir,lro->lio"), (1, "ilr,rlo->ilo")):
        adapter = qwix_adapter(tree, alpha=2, axis=axis)
        product = np.take(np.einsum(pattern, a, b), 1, axis)
        update: Any = adapter.updates["layers.1"]
        np.testing.assert_allclose(update.b @ update.a, product.T)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.w: (2, 3, 2) and (2, 4): no axis of layers\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter({"layers.w_lora_a": drawn(2, 3, 2), "layers.w_lora_b": drawn(2, 4)}, alpha=1)


def openpi(stacked: bool = True) -> dict[str, Any]:
    """Returns openpi's tree: leaves of the einsums and the MLP, with factors."""
    shapes = {
        "attn.q_einsum.w": (N, D, H),
        "attn.kv_einsum.w": (2, K, D, H),
        "attn.attn_vec_einsum.w": (N, H, D),
        "attn.q_einsum_1.w": (N, D, H),
        "mlp.gating_einsum": (2, D, F),
        "mlp.linear": (F, D),
    }
    lead = (L,) if stacked else ()
    leaves: dict[str, Any] = {"action_in_proj.kernel": drawn(4, D)}
    for name, shape in shapes.items():
        above = "PaliGemma.llm.layers." + name
        module, dot, _ = above.rpartition(".w")
        stem = f"{module}.lora" if dot else f"{above}_lora"
        leaves[above] = drawn(*lead, *shape)
        leaves[f"{stem}_a"] = drawn(*lead, *shape[:-1], R, seed=1)
        leaves[f"{stem}_b"] = drawn(*lead, *shape[:-2], R, shape[-1], seed=2)
    return leaves


def openpi_deltas(leaves: dict[str, Any], scale: float) -> dict[str, Any]:
    """Returns what openpi's forward adds to each leaf; its MLP has no scale."""
    above = "PaliGemma.llm.layers."
    equations = {
        "attn.q_einsum": "lndr,lnrh->lndh",
        "attn.q_einsum_1": "lndr,lnrh->lndh",
        "attn.kv_einsum": "lckdr,lckrh->lckdh",
        # "BTNH,NHr->BTr" and "BTr,NrD->BTD": b is summed over the heads.
        "attn.attn_vec_einsum": "lnhr,lmrd->lnhd",
    }
    deltas = {
        f"{above}{name}.w": scale
        * np.einsum(equation, leaves[f"{above}{name}.lora_a"], leaves[f"{above}{name}.lora_b"])
        for name, equation in equations.items()
    }
    for name, equation in (("gating_einsum", "lcdr,lcrf->lcdf"), ("linear", "lfr,lrd->lfd")):
        a, b = (leaves[f"{above}mlp.{name}_lora_{x}"] for x in "ab")
        deltas[f"{above}mlp.{name}"] = np.einsum(equation, a, b)
    return deltas


@pytest.mark.parametrize("use_rslora", [False, True])
def test_openpi_matches_its_formula(use_rslora: bool) -> None:
    """Named and bare factors, per head and summed over heads, match openpi's formula."""
    leaves = openpi()
    scale = 6 / np.sqrt(R) if use_rslora else 6 / R
    with jax.enable_x64(True), uncompiled():
        adapter = qwix_adapter(leaves, alpha=6, use_rslora=use_rslora)
        assert len(adapter.sites) == 6 * L
        composed = jaxmix.compose(leaves, adapter)
    for name, delta in openpi_deltas(leaves, scale).items():
        np.testing.assert_allclose(composed[name], leaves[name] + delta, atol=1e-12, err_msg=name)
        assert np.abs(delta).max() > 0.1
    assert composed["action_in_proj.kernel"] is leaves["action_in_proj.kernel"]


def test_misshaped_openpi_einsums_are_listed() -> None:
    """All misshaped einsums are listed in one error."""
    leaves = {
        "layers.attn.q_einsum.lora_a": drawn(L, N, D, R),
        "layers.attn.q_einsum.lora_b": drawn(L, N + 1, R, H),
        "layers.attn.kv_einsum.lora_a": drawn(L, 2, K, D, R),
        "layers.attn.kv_einsum.lora_b": drawn(L, 2, K, R + 1, H),
    }
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.attn.kv_einsum: (2, 2, 10, 2) and (2, 2, 3, 6)\n"
            "  layers.attn.q_einsum: (4, 10, 2) and (5, 2, 6)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(leaves, alpha=1)


@pytest.mark.parametrize(
    ("leaf", "shape", "sites"),
    [
        ("layers.0.q.kernel", (4, 2), ["layers.0.q"]),
        ("layers.0.q.kernel", (3, 4, 2), ["layers.0.q"]),  # of one numbered layer
        ("layers.q.kernel", (3, 4, 2), [f"layers.{i}.q" for i in range(3)]),
        ("moe_layers.layers.q.w", (3, 4, 2), [f"moe_layers.layers.{i}.q" for i in range(3)]),
        ("q.scale", (4, 2), ["q.scale"]),  # no name of a module's weight
        ("kernel", (4, 2), ["kernel"]),  # it is in no module
    ],
)
def test_sites_are_named_by_module_and_layer(
    leaf: str, shape: tuple[int, ...], sites: list[str]
) -> None:
    """The number follows the innermost stack; numbered layers and other stacks are not split."""
    is_stacked = len(sites) > 1
    b = drawn(3, 2, 5) if is_stacked else drawn(2, 5)
    updates = updates_of(Pair(leaf, "qwix", drawn(*shape), b), 0.5, None)
    assert [site for site, _ in updates] == sites
    for i, (_, update) in enumerate(updates):
        lora: Any = update
        a = drawn(*shape)[i] if is_stacked else drawn(*shape).reshape(-1, 2)
        product = a @ (b[i] if is_stacked else b)
        np.testing.assert_allclose(lora.b @ lora.a, product.T)
        assert lora.scale == 0.5


@pytest.mark.parametrize("shapes", [((4, 0), (0, 3)), ((4,), (2, 3)), ((), ())])
def test_factors_without_numbers_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    """A rank of zero has no scale, and a vector no rank."""
    a, b = (np.zeros(shape) for shape in shapes)
    with pytest.raises(ShapeError, match=full_text(f"{a.shape} and {b.shape}")):
        updates_of(Pair("q.kernel", "qwix", a, b), 1.0, None)
