"""The layout that is inferred from names or shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import LoRA
from jaxmix.placement import choosing
from jaxmix.placement.layout import LAYOUTS, libraries, named

from ..messages import full_text

Q, V, GATE = (
    f"model.layers.0.{x}" for x in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj")
)


def zeros(*shape: int) -> Any:
    return jnp.zeros(shape, jnp.float32)


def lora(**sites: Any) -> Adapter:
    """Returns LoRAs whose products are ones."""
    return Adapter(
        {s: LoRA(jnp.ones((1, i)), jnp.ones((o, 1)), 1.0) for s, (o, i) in sites.items()}
    )


def at(site: str, out: int, size: int) -> Adapter:
    return lora(**{site: (out, size)})


def scanned() -> Any:
    """Returns a MaxText tree of two layers with four heads of six."""
    layers = {
        "self_attention": {
            "query": {"kernel": zeros(12, 2, 4, 6)},
            "value": {"kernel": zeros(12, 2, 2, 6)},
        },
        "mlp": {"wi_0": {"kernel": zeros(12, 2, 20)}},
    }
    return {"params": {"decoder": {"layers": layers}}}


def test_layout_is_inferred_from_names() -> None:
    """A site that all of MaxText's tables read alike needs no layout."""
    out = jaxmix.compose(scanned(), jaxmix.mix(at(V, 12, 12), at(GATE, 20, 12).renamed("b")))
    layers = out["params"]["decoder"]["layers"]
    value = np.asarray(layers["self_attention"]["value"]["kernel"])
    assert (value[:, 0] == 1).all() and not value[:, 1].any()
    assert (np.asarray(layers["mlp"]["wi_0"]["kernel"])[:, 0] == 1).all()


def test_differing_layouts_are_ambiguous() -> None:
    """MaxText stores queries by model, and no leaf shows the model."""
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(scanned(), [at(V, 12, 12), at(Q, 24, 12).renamed("b")])
    text = str(caught.value)
    assert text.startswith(
        "several layouts fit the params, 'maxtext_llama' and 'maxtext_qwen' and 'maxtext_mixtral', "
        "and read leaves differently:\n"
        f"  {Q}: 'maxtext_llama' and 'maxtext_qwen'\n  {Q}: 'maxtext_llama' and 'maxtext_mixtral'\n"
        "Choose one: layout='maxtext_llama' or layout='maxtext_qwen' or layout="
    )
    llama, qwen = (
        jaxmix.compose(scanned(), at(Q, 24, 12), layout=f"maxtext_{name}")["params"]["decoder"]
        for name in ("llama", "qwen")
    )
    query = [x["layers"]["self_attention"]["query"]["kernel"] for x in (llama, qwen)]
    np.testing.assert_allclose(np.asarray(query[0]) * 6**0.5, query[1], rtol=1e-6)
    assert np.asarray(query[1])[:, 0].all()


@pytest.mark.parametrize("shape", [(2, 20, 12), (2, 12, 20)], ids=str)
def test_layout_is_inferred_from_shapes(shape: tuple[int, ...]) -> None:
    """The factors determine the axes of a leaf."""
    params = {"layer_0": {"mlp": {"gating_einsum": zeros(*shape)}}}
    update = LoRA(jnp.ones((1, 12)), jnp.arange(20.0)[:, None], 1.0)
    out = jaxmix.compose(params, Adapter({GATE: update}))["layer_0"]["mlp"]["gating_einsum"]
    expected = np.broadcast_to(np.arange(20.0), (12, 20))
    np.testing.assert_array_equal(out[0], expected.T if shape[1] == 20 else expected)
    assert not np.asarray(out[1]).any()


def test_shapes_that_fit_no_layout_are_refused() -> None:
    params = {"layer_0": {"mlp": {"gating_einsum": zeros(2, 7, 9)}}}
    message = (
        f"factors that do not fit the params:\n  {GATE}: lora_A has shape (1, 12), expected (1, 9)"
        "; lora_B has shape (20, 1), expected (7, 1) from weight (7, 9)\n"
        "Was the adapter trained on another model, or on a base of another size?"
    )
    with pytest.raises(ShapeError, match=full_text(message)):
        jaxmix.compose(params, at(GATE, 20, 12))


def test_sites_without_a_leaf_are_listed() -> None:
    """The error is that of the table that finds the most sites."""
    other = at("model.layers.0.mlp.extra", 12, 12).renamed("b")
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'maxtext_llama':\n"
            "  model.layers.0.mlp.extra: the layout has no rule for its "
            "weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ) as caught:
        jaxmix.compose(scanned(), [at(V, 12, 12), other])
    assert "model.layers.0.mlp.extra: the layout has no rule for its weight" in str(caught.value)


def test_names_need_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """If leaves have the names of sites, no table is consulted."""

    def never() -> Any:
        raise AssertionError("the tables were asked for")

    monkeypatch.setattr(choosing, "libraries", never)
    out = jaxmix.compose({f"{V}.weight": zeros(12, 12)}, at(V, 12, 12))
    assert (np.asarray(out[f"{V}.weight"]) == 1).all()
    with pytest.raises(AssertionError, match=full_text("the tables were asked for")):
        jaxmix.compose(scanned(), at(V, 12, 12))


def test_attach_and_bank_infer_the_layout() -> None:
    """They also infer it under an outer trace, where only shapes are known."""
    mixed = at(V, 12, 12)
    expected = jaxmix.compose(scanned(), mixed)
    leaves = jaxmix.attach(scanned(), mixed)
    leaf = leaves["params"]["decoder"]["layers"]["self_attention"]["value"]["kernel"]
    kernel = expected["params"]["decoder"]["layers"]["self_attention"]["value"]["kernel"]
    assert bool((leaf.dense() == kernel).all())
    traced = jax.jit(lambda p: jaxmix.compose(p, mixed))(scanned())
    np.testing.assert_array_equal(
        traced["params"]["decoder"]["layers"]["self_attention"]["value"]["kernel"], kernel
    )


def test_tree_without_a_head_is_refused() -> None:
    """A table has a leaf for the head, the tree has none: PEFT changes one side only."""
    embedding = "model.embed_tokens"
    for tree, name in (
        ({"embedder": {"input_embedding": zeros(32, 12)}}, "tunix"),
        ({"params": {"token_embedder": {"embedding": zeros(32, 12)}}}, "maxtext_llama"),
    ):
        message = (
            "the tree ties the tensors of these sites to others:\n"
            f"  {embedding}: the layout {name!r} has a leaf for lm_head, but the tree has none, so "
            "that the embedding is the head too (tied). PEFT's forward changes one side only: give "
            "the head a leaf of its own; or, if the model has no head at all, pass a jaxmix.Layout "
            "without a rule for one"
        )
        with pytest.raises(LayoutError, match=full_text(message)):
            jaxmix.compose(tree, at(embedding, 32, 12), layout=name)


def test_names_of_layouts() -> None:
    assert set(LAYOUTS).isdisjoint(libraries())
    assert all(named(name).name == name for name in (*LAYOUTS, *libraries()))
    message = (
        "there is no layout 'maxtext', expected None, one of "
        f"{', '.join(map(repr, (*LAYOUTS, *libraries())))}, or a jaxmix.Layout with rules of your "
        "own."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        named("maxtext")
