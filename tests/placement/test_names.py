"""The names of leaves; names of PyTorch wrappers are removed from them and from sites."""

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA, Replace
from jaxmix.placement.names import bare, leaf_name, leaf_names, unwrapped, without_wrappers
from jaxmix.placement.ties import Ties

from ..messages import full_text, tied_embedding


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_orig_mod.h.0.q", "h.0.q"),
        ("h.0._fsdp_wrapped_module._checkpoint_wrapped_module.q", "h.0.q"),
        ("h.0.q._orig_mod", "h.0.q"),
        ("h.0.q._orig_mod._fsdp_wrapped_module", "h.0.q"),
        ("_forward_module._fpw_module.h", "h"),
        (r"^_orig_mod\.h\.0\.q", r"^h\.0\.q"),
        (r"h\._orig_mod", "h"),
        ("my_orig_mod.h", "my_orig_mod.h"),
        ("module.h.module.q", "module.h.module.q"),
        ("h._orig_module.q", "h._orig_module.q"),
    ],
)
def test_wrapper_names_are_removed(name, expected):
    """Wrapper names are removed anywhere, where they are complete parts of the name."""
    assert without_wrappers(name) == expected


def test_outer_module_is_removed_if_all_have_it():
    """A leading `module` is removed only if all names have it."""
    assert list(unwrapped(["module.a", "module.module.b.module.c"]).values()) == [
        "a",
        "module.b.module.c",
    ]
    assert list(unwrapped(["module.module.a", "module.module.b"]).values()) == ["a", "b"]
    assert list(unwrapped(["module.a", "head"]).values()) == ["module.a", "head"]
    assert unwrapped([]) == {}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "base_model.model.",
        "base_model.model.base_model.model.",
        "base_model.model." * 3,
        "module.base_model.model.",
        "base_model.model.module.",
        "base_model.module.model.",
        "_orig_mod.module.base_model._orig_mod.model.module.",
        "module._orig_mod.base_model.model._fsdp_wrapped_module.base_model.model.",
    ],
)
def test_peft_is_repeated_or_missing(prefix):
    """PEFT's prefix may be repeated or missing, inside or outside of other wrappers."""
    names = [f"{prefix}h.{i}.q" for i in range(2)]
    assert list(unwrapped(names, is_peft=True).values()) == ["h.0.q", "h.1.q"]
    assert {bare(name) for name in names} == {"h.0.q", "h.1.q"}


def test_peft_around_a_part_of_the_model():
    """A prefix inside the name is removed, and the names around it stay."""
    name = "language_model.base_model.model.model.layers.0.q"
    assert unwrapped([name], is_peft=True) == {name: "language_model.model.layers.0.q"}


def lora(*sites: str) -> jaxmix.Adapter:
    """Returns a LoRA at these sites."""
    return jaxmix.Adapter({s: LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0) for s in sites}, name="a")


@pytest.mark.parametrize(
    ("leaf", "site"),
    [
        ("_orig_mod.h.0.q", "h.0.q"),
        ("module.h.0.q", "h.0.q"),
        ("h.0._checkpoint_wrapped_module.q", "h.0.q"),
        ("h.0.module.q", "h.0.q"),
        ("base_model.model.h.0.q", "h.0.q"),
        ("h.0.q", "h.0.module.q"),
        ("module.h.0.q", "h.0._orig_mod.q"),
    ],
)
def test_wrapped_leaf_is_found(leaf, site):
    """A wrapped leaf is found for the weight and for the bias."""
    params = {f"{leaf}.weight": np.zeros((2, 3), np.float32)}
    params[f"{leaf}.bias"] = np.zeros(2, np.float32)
    out = jaxmix.compose(params, lora(site))
    assert np.array_equal(out[f"{leaf}.weight"], np.ones((2, 3)))
    out = jaxmix.compose(params, jaxmix.Adapter({site: Replace(None, np.ones(2))}, name="a"))
    assert np.array_equal(out[f"{leaf}.bias"], np.ones(2))


def test_exact_names_take_precedence():
    """A leaf with the exact name precedes a leaf that differs by `module`."""
    zeros = np.zeros((2, 3), np.float32)
    params = {"h.q.weight": zeros, "h.module.q.weight": zeros}
    out = jaxmix.compose(params, lora("h.module.q"))
    assert out["h.q.weight"] is zeros and np.array_equal(out["h.module.q.weight"], np.ones((2, 3)))
    params = {"h.module.weight": zeros, "h.bias": np.zeros(2, np.float32)}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            "  h.module: the adapter changes its bias, but the tree has no such leaf; add one of "
            "zeros\nWas the adapter trained on another model? If the leaves have other names, pass "
            "layout=jaxmix.Layout(…) with rules."
        ),
    ):
        jaxmix.compose(params, jaxmix.Adapter({"h.module": Replace(None, np.ones(2))}, name="a"))


def test_leaves_that_differ_only_by_wrappers():
    """Leaves that differ only in wrapper names are ambiguous."""
    params = {f"{name}.h.q.weight": np.zeros((2, 3)) for name in ("_orig_mod", "module")}
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            "  h.q: several leaves match its weight: _orig_mod.h.q.weight, module.h.q.weight\n"
            "Was the adapter trained on another model? If the leaves have other names, pass "
            "layout=jaxmix.Layout(…) with rules. No name map matches all of them to leaves."
        ),
    ):
        jaxmix.compose(params, lora("h.q"))


def test_wrapped_tied_embedding():
    """A tied embedding is detected under wrapped names too."""
    names = ["_orig_mod.model.embed_tokens.weight", "_orig_mod.model.norm.weight"]
    assert Ties.of(names).problem("model.embed_tokens") == tied_embedding(advice=False)
    untied = Ties.of([*names, "_orig_mod.lm_head.weight"])
    assert untied.problem("model.embed_tokens") is None


def test_names_of_leaves() -> None:
    """A variable's `value` is left out of a name; an attribute called `value` is kept."""
    key, attr, at = jax.tree_util.DictKey, jax.tree_util.GetAttrKey, jax.tree_util.SequenceKey
    assert leaf_name((key("a"), at(0), attr("kernel"), attr("value"))) == "a.0.kernel"
    assert leaf_name((key("attn"), key("value"))) == "attn.value"
    assert leaf_name((attr("value"),)) == "value"
    assert leaf_name((jax.tree_util.FlattenedIndexKey(3),)) == "3"
    assert leaf_names([(attr("a"), attr("value")), (attr("a"), attr("key"))]) == [
        "a.value",
        "a.key",
    ]
