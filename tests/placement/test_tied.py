"""Tied embeddings: they are detected by names, refused with advice, and untied."""

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA, Replace, Together, Tokens
from jaxmix.models import Decoder, read_config
from jaxmix.placement.layout import NAMES
from jaxmix.placement.ties import Ties
from jaxmix.pytrees import register_dataclass

from .. import tied_names
from ..laws.draws import ones, zeros
from ..messages import full_text, tied_embedding, tied_to, ties

SAVED: dict[str, dict[str, Any]] = json.loads(tied_names.FILE.read_text())
FLAX = {"weight": "kernel"}


def in_flax(name: str, embedding: str) -> str:
    """Returns a leaf's name in a Linen tree."""
    module, _, part = name.rpartition(".")
    part = "embedding" if module == embedding else FLAX.get(part, part)
    return f"params.{module}.{part}" if module else f"params.{part}"


@pytest.mark.parametrize("name", SAVED)
def test_names_of_transformers(name: str) -> None:
    """Tied embeddings and heads are reported for tied models only."""
    model = SAVED[name]
    site, head, leaves = model["embedding"], model["head"], model["leaves"]
    for names in (leaves, [f"params.{n}" for n in leaves], [in_flax(n, site) for n in leaves]):
        ties_of_tree = Ties.of(names)
        problem = ties_of_tree.problem(site)
        assert (problem is not None) == model["tied"], problem
        if problem:
            assert f"there is no {head}, the head too" in problem
            assert f"add a leaf {head}." in ties_of_tree.advice(site)
        # With the leaf that the message requests, the problem is gone.
        for part in ("weight", "kernel"):
            assert head is None or Ties.of([*names, f"{head}.{part}"]).problem(site) is None
        if head is not None:
            expected = f"{head} is tied to {site}" if model["tied"] else None
            assert ties_of_tree.problem(head) == expected


@pytest.mark.parametrize("name", SAVED)
def test_other_sites_are_not_tied(name: str) -> None:
    """Layers, norms, positions, parts of a head and missing modules are not tied."""
    model = SAVED[name]
    modules = {leaf.rpartition(".")[0] for leaf in model["leaves"]} | {"no.such", "lm_head.dense"}
    modules -= {model["embedding"], model["head"]}
    ties_of_tree = Ties.of(model["leaves"])
    assert not [module for module in modules if ties_of_tree.problem(module)]
    assert not any(ties_of_tree.advice(module) for module in modules)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs torch and transformers")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    ["LlamaForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "RobertaForMaskedLM", "OPTModel"],
)
def test_recorded_names_are_up_to_date(name: str) -> None:
    """The recorded names are those that the installed transformers saves."""
    assert tied_names.saved(name, tied=True) == SAVED[name]


def test_t5_without_a_head_looks_like_one_with() -> None:
    """T5Model has the names of a tied T5ForConditionalGeneration; the error states the remedy."""
    ties_of_tree = Ties.of(SAVED["T5ForConditionalGeneration"]["leaves"])
    assert ties_of_tree.advice("shared").endswith(
        "jaxmix.Layout('headless', jaxmix.layout.NAMES.rules)"
    )
    for site, expected in (
        ("shared", tied_embedding("shared")),
        ("decoder.embed_tokens", tied_to("decoder.embed_tokens", "shared")),
    ):
        assert f"{ties_of_tree.problem(site)}. {ties_of_tree.advice(site)}" == expected


# ---------------------------------------------------------------- in compose

EMBED, HEAD = "model.embed_tokens", "lm_head"
E = np.arange(24, dtype=np.float32).reshape(6, 4)
TREE = {f"{EMBED}.weight": E, "model.norm.weight": ones(4, np.float32)}


def lora(*sites: str, shape: tuple[int, int] = (6, 4)) -> Adapter:
    """Returns an adapter that adds 1 everywhere."""
    a, b = ones((1, shape[1])), ones((shape[0], 1))
    return Adapter({site: LoRA(a, b, 1.0, embedding=site == EMBED) for site in sites})


def test_tied_tree_is_refused() -> None:
    """Both sides of the tie are listed in one error."""
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding(), tied_to("lm_head"))),
    ):
        jaxmix.compose(TREE, [lora(EMBED), 0.5 * lora(HEAD).renamed("head")])
    nested = {"params": {"model": {"embed_tokens": {"embedding": E}}}}
    with pytest.raises(
        LayoutError,
        match=full_text(
            ties(
                tied_embedding(
                    new="lm_head.kernel", copied="model.embed_tokens.embedding transposed"
                )
            )
        ),
    ):
        jaxmix.compose(nested, [lora(EMBED)])
    for layout in ("torch", "names", NAMES):
        with pytest.raises(
            LayoutError,
            match=full_text(ties(tied_embedding())),
        ):
            jaxmix.compose(TREE, [lora(EMBED)], layout=layout)


def test_following_the_message_unties_the_leaf() -> None:
    """Following the message's advice changes only the adapter's side."""
    untied = {**TREE, f"{HEAD}.weight": TREE[f"{EMBED}.weight"]}
    out = jaxmix.compose(untied, [lora(EMBED)])
    np.testing.assert_array_equal(out[f"{EMBED}.weight"], E + 1)
    assert out[f"{HEAD}.weight"] is E
    out = jaxmix.compose(untied, [lora(HEAD)])
    np.testing.assert_array_equal(out[f"{HEAD}.weight"], E + 1)
    assert out[f"{EMBED}.weight"] is E


def test_both_sides_trained_as_one_stay_tied() -> None:
    """The shared leaf takes an update of both sides once, under PyTorch's and Flax's names."""
    out = jaxmix.compose(TREE, [lora(EMBED, HEAD), (-3 * lora(EMBED, HEAD)).renamed("other")])
    assert out.keys() == TREE.keys()
    np.testing.assert_array_equal(out[f"{EMBED}.weight"], E - 2)
    nested = {"params": {"model": {"embed_tokens": {"embedding": E}}}}
    out = jaxmix.compose(nested, lora(EMBED, HEAD), layout="flax")
    np.testing.assert_array_equal(out["params"]["model"]["embed_tokens"]["embedding"], E + 1)
    saved = Adapter({site: Replace(weight=E * 2) for site in (EMBED, HEAD)})
    out = jaxmix.compose(TREE, 0.5 * saved)
    np.testing.assert_array_equal(out[f"{EMBED}.weight"], E * 1.5)
    untied = {**TREE, f"{HEAD}.weight": E}
    out = jaxmix.compose(untied, saved)
    assert all(np.array_equal(out[f"{site}.weight"], E * 2) for site in (EMBED, HEAD))


def test_trained_as_one_takes_all_sides() -> None:
    """The update stays tied only if all sides have the same known numbers."""
    dora = LoRA(ones((1, 4)), ones((6, 1)), 1.0, magnitude=ones(4), embedding=True)
    decomposed = replace(dora, embedding=False)  # its norm is taken along the other axis
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding(), tied_to("lm_head"))),
    ):
        jaxmix.compose(TREE, Adapter({EMBED: dora, HEAD: decomposed}))
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_to("lm_head"), tied_embedding())),
    ):
        jax.jit(lambda adapter: jaxmix.compose(TREE, adapter))(lora(EMBED, HEAD))
    t5 = {"shared.weight": E, **{f"{s}.block.0.x.weight": E for s in ("encoder", "decoder")}}
    sides = ["shared", "lm_head", "encoder.embed_tokens", "decoder.embed_tokens"]
    with pytest.raises(
        LayoutError,
        match=full_text(
            ties(
                tied_embedding("shared"),
                tied_to("lm_head", "shared"),
                tied_to("encoder.embed_tokens", "shared"),
            )
        ),
    ):
        jaxmix.compose(t5, Adapter({site: Replace(weight=E + 1) for site in sides[:3]}))
    out = jaxmix.compose(t5, Adapter({site: Replace(weight=E + 1) for site in sides}))
    np.testing.assert_array_equal(out["shared.weight"], E + 1)
    assert out.keys() == t5.keys()


def test_a_bias_of_a_head_trained_as_one() -> None:
    """A head's bias is found next to the head, or one module above it."""
    bias = np.arange(6, dtype=np.float32)
    site = "bert.embeddings.word_embeddings"
    head = "cls.predictions.decoder"
    tree = {f"{site}.weight": E, "cls.predictions.bias": np.zeros_like(bias)}
    updates = {site: Replace(weight=E + 1), head: Replace(weight=E + 1, bias=bias)}
    out = jaxmix.compose(tree, 0.5 * Adapter(updates))
    np.testing.assert_array_equal(out[f"{site}.weight"], E + 0.5)
    np.testing.assert_array_equal(out["cls.predictions.bias"], bias / 2)
    separate_bias = {head: Together((Replace(weight=E + 1), Replace(bias=bias)))}
    out = jaxmix.compose(tree, Adapter({**updates, **separate_bias}))
    np.testing.assert_array_equal(out["cls.predictions.bias"], bias)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  lm_head: no leaf for its bias; the nearest are "
            "model.embed_tokens.weight, model.norm.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose(TREE, Adapter({EMBED: updates[site], HEAD: updates[head]}))


def test_headless_by_layout() -> None:
    """A layout without ties handles a headless model whose names look tied."""
    headless = Layout("headless", jaxmix.layout.NAMES.rules)
    out = jaxmix.compose(TREE, [lora(EMBED)], layout=headless)
    np.testing.assert_array_equal(out[f"{EMBED}.weight"], E + 1)


def test_other_sites_of_a_tied_tree() -> None:
    """Other sites of a tied tree take adapters, and a norm is not a tie."""
    params = {**TREE, "model.layers.0.q.weight": zeros((6, 4), np.float32)}
    out = jaxmix.compose(params, [lora("model.layers.0.q")])
    assert (np.asarray(out["model.layers.0.q.weight"]) == 1).all()
    out = jaxmix.compose(params, [Adapter({"model.norm": Replace(zeros(4))})])
    assert not np.asarray(out["model.norm.weight"]).any()


def test_layout_with_head_and_embedding_in_one_leaf() -> None:
    """A user's layout may place the head in the embedding's leaf."""
    rules = (Rule(r"model\.embed_tokens|lm_head", "embedder"), Rule("q", "q"))
    params = {"embedder": E, "q": E}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the tree ties the tensors of these sites to others:\n"
            "  model.embed_tokens: the layout 'mine' has lm_head in the same leaf embedder. PEFT's "
            "forward changes one side only: give the head a leaf and a rule of its own, or none"
        ),
    ):
        jaxmix.compose(params, [lora(EMBED)], layout=Layout("mine", rules))
    jaxmix.compose(params, [lora("q")], layout=Layout("mine", rules))
    untied_rules = (Rule(r"model\.embed_tokens", "embedder"), Rule("lm_head", "head"))
    out = jaxmix.compose({**params, "head": E}, [lora(EMBED)], layout=Layout("mine", untied_rules))
    np.testing.assert_array_equal(out["embedder"], E + 1)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the tree ties the tensors of these sites to others:\n"
            "  model.embed_tokens: the layout 'mine' has a leaf for lm_head, but the tree has "
            "none, so that the embedding is the head too (tied). PEFT's forward changes one side "
            "only: give the head a leaf of its own; or, if the model has no head at all, pass a "
            "jaxmix.Layout without a rule for one"
        ),
    ):
        jaxmix.compose(params, [lora(EMBED)], layout=Layout("mine", untied_rules))
    jaxmix.compose(params, [lora("q")], layout=Layout("mine", (*untied_rules, Rule("q", "q"))))


# ---------------------------------------------------------------- our own models


def decoder(tied: bool = True) -> Decoder:
    """Returns a tiny decoder."""
    config = read_config(
        dict(
            model_type="llama",
            vocab_size=11,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=4,
            tie_word_embeddings=tied,
        )
    )
    return Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


TOKENS = jnp.array([[1, 2, 3]])


@pytest.mark.parametrize("site", [EMBED, HEAD])
@pytest.mark.parametrize("jitted", [False, True])
def test_tied_decoder_is_untied(site: str, jitted: bool) -> None:
    """The new model has one changed side; the old model is unchanged."""
    model = decoder()
    logits = np.asarray(model(TOKENS))
    compose = jax.jit(jaxmix.compose) if jitted else jaxmix.compose
    out = compose(model, [0.01 * lora(site, shape=(11, 8))])
    assert isinstance(out, Decoder) and not out.config.tie_word_embeddings
    table = np.asarray(model.model.embed_tokens.embedding[...])
    embedding = np.asarray(out.model.embed_tokens.embedding[...])
    head = np.asarray(out.lm_head.kernel[...])
    changes = (0.01 * (site == EMBED), 0.01 * (site == HEAD))
    np.testing.assert_allclose(embedding, table + changes[0], atol=1e-7)
    np.testing.assert_allclose(head, table.T + changes[1], atol=1e-7)
    assert model.config.tie_word_embeddings
    np.testing.assert_array_equal(model(TOKENS), logits)
    assert np.abs(np.asarray(out(TOKENS)) - logits).max() > 1e-6


def test_decoder_stays_tied_if_possible() -> None:
    """Adapters of layers keep the tie, and an untied decoder stays untied."""
    site = "model.layers.0.self_attn.q_proj"
    out = jaxmix.compose(decoder(), [lora(site, shape=(8, 8))])
    assert out.config.tie_word_embeddings and not hasattr(out, "lm_head")
    out = jaxmix.compose(decoder(tied=False), [lora(EMBED, HEAD, shape=(11, 8))])
    assert not out.config.tie_word_embeddings


def test_state_of_a_tied_decoder_is_refused() -> None:
    """A state cannot untie itself; the message names the method."""
    for params in (nnx.state(decoder()), nnx.to_pure_dict(nnx.state(decoder()))):
        with pytest.raises(
            LayoutError,
            match=full_text(
                ties(
                    tied_embedding(
                        new="lm_head.kernel", copied="model.embed_tokens.embedding transposed"
                    )
                )
            ),
        ):
            jaxmix.compose(params, [lora(EMBED, shape=(11, 8))])
    out = jaxmix.compose(nnx.state(decoder().untied()), [lora(EMBED, shape=(11, 8))])
    assert isinstance(out, nnx.State)


@register_dataclass
@dataclass(frozen=True)
class Stubborn:
    """A tree whose `untied` does not untie it."""

    model: Any

    def untied(self) -> "Stubborn":
        return self


def test_tree_that_stays_tied_is_refused() -> None:
    """A tree that is still tied after `untied` is refused."""
    tree = Stubborn({"embed_tokens": {"weight": E}})
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding())),
    ):
        jaxmix.compose(tree, [lora(EMBED)])


def test_tokens_keep_the_tie_and_others_do_not() -> None:
    """Trained tokens change the shared leaf; with an update of one side they are refused."""
    tokens = Tokens(ones((1, 4)), np.array([2], np.int32))
    alone, with_replace = (
        Adapter({"model.embed_tokens": update}, name=type(update).__name__)
        for update in (tokens, Together((tokens, Replace(zeros((6, 4))))))
    )
    tied = {"model.embed_tokens.weight": jnp.zeros((6, 4)), "model.norm.weight": jnp.ones(4)}
    out = jaxmix.compose(tied, alone)["model.embed_tokens.weight"]
    assert out.sum() == 4 and out[2].sum() == 4
    with pytest.raises(
        LayoutError,
        match=full_text(ties(tied_embedding())),
    ):
        jaxmix.compose(tied, with_replace)

    class Model(dict):
        """A model that can be untied."""

        def untied(self) -> dict[str, Any]:
            return {**self, "lm_head.weight": self["model.embed_tokens.weight"]}

    jax.tree_util.register_pytree_with_keys(
        Model,
        lambda m: ([(jax.tree_util.DictKey(k), v) for k, v in m.items()], tuple(m)),
        lambda keys, values: Model(zip(keys, values, strict=True)),
    )
    assert isinstance(jaxmix.compose(Model(tied), alone), Model)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "an adapter trained tokens, which changes both sides of a tied embedding, and another "
            f"changes one side of it:\n  model.embed_tokens\n  {tied_embedding()}\n"
            "Untie the model, and give the head tokens of its own."
        ),
    ):
        jaxmix.compose(Model(tied), with_replace)
