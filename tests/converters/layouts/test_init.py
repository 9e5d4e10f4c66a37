"""`jaxmix.init` on the trees of model libraries targets the modules that PEFT targets."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import LayoutError
from jaxmix.placement import inverse
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import Layout, Rule
from jaxmix.placement.tree import Tree

from ...messages import full_text
from ...uncompiled import uncompiled
from .models import linears
from .test_libraries import GOLDENS, SAID, golden, kind_of, nested, table

_KEY = jax.random.key(0)


def tree_of(path: Path) -> Any:
    """Returns the library's tree as most libraries have it; KerasHub's is flat."""
    leaves = golden(path)[1]
    return leaves if "keras" in path.stem else nested(leaves)


def layout_of(path: Path) -> Layout | None:
    """Returns the layout, if leaves of these names may be stored in several ways."""
    return table(path) if path.stem.removesuffix("-unscanned") in SAID else None


@pytest.mark.one_of(2)
@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_all_linear_matches_peft(path: Path) -> None:
    """Every linear layer except the head is targeted, by Hugging Face's names and sizes."""
    tree, layout, kind = tree_of(path), layout_of(path), kind_of(path)
    adapter = jaxmix.init("lora", tree, _KEY, target_modules="all-linear", rank=2, layout=layout)
    sizes = {s: (u.b.shape[0], u.a.shape[1]) for s, u in _loras(adapter).items()}
    assert sizes == linears(kind)
    moved = jax.tree.map(lambda x: x + 0.1 if getattr(x, "ndim", 0) == 2 else x, adapter)
    with uncompiled():
        new = Tree.of(jaxmix.compose(tree, moved, layout=layout))
    leaves = golden(path)[1]
    targeted = {p.leaf for s in sizes for p in table(path).places(s, "weight")} & set(leaves)
    for name, leaf in leaves.items():
        output = np.asarray(new.leaves[new.positions[name]])
        assert (
            (output != leaf).all() if name in targeted else output is leaf or (output == leaf).all()
        )


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_names_are_ends_of_paths(path: Path) -> None:
    """PEFT's suffix rule, excludes and layers apply to names that no leaf has."""
    tree, layout, kind = tree_of(path), layout_of(path), kind_of(path)
    config: dict[str, Any] = {"rank": 1, "layout": layout}
    adapter = jaxmix.init("lora", tree, _KEY, target_modules=["q_proj", "down_proj"], **config)
    assert set(adapter.sites) == {s for s in linears(kind) if s.endswith(("q_proj", "down_proj"))}
    options: Any = {"exclude_modules": ["mlp"], "layers_to_transform": [1]}
    adapter = jaxmix.init(
        "lora", tree, _KEY, target_modules=["q_proj", "v_proj"], **options, **config
    )
    assert set(adapter.sites) == {f"model.layers.1.self_attn.{x}_proj" for x in "qv"}
    adapter = jaxmix.init("oft", tree, _KEY, target_modules=r".*\.1\..*o_proj", layout=layout)
    assert adapter.sites == ("model.layers.1.self_attn.o_proj",)


def _loras(adapter: jaxmix.Adapter) -> dict[str, Any]:
    return dict(adapter.updates)


@pytest.mark.parametrize("stem", ["maxtext-llama", "maxtext-qwen3", "maxtext-llama-unscanned"])
def test_ambiguous_layouts_are_refused(stem: str) -> None:
    """The error names them; modules that all of them read alike need no layout."""
    (path,) = [path for path in GOLDENS if path.stem == stem]
    tree = tree_of(path)
    names = ["maxtext_llama", "maxtext_qwen", "maxtext_mixtral"]
    names += ["maxtext_gemma3"] if stem == "maxtext-llama-unscanned" else []
    message = (
        "several layouts fit the params and read leaves in different ways:\n"
        "  model.layers.0.self_attn.q_proj: 'maxtext_llama' and 'maxtext_qwen'\n"
        f"Pass {' or '.join(f'layout={name!r}' for name in names)}."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        jaxmix.init("lora", tree, _KEY, target_modules="all-linear")
    adapter = jaxmix.init("lora", tree, _KEY, target_modules=["gate_proj"], rank=1)
    assert len(adapter.sites) == 2


def test_leaf_without_a_rule_is_listed() -> None:
    """A weight without a rule may be a linear layer, so it is an error."""
    (path,) = [path for path in GOLDENS if path.stem == "tunix-llama"]
    tree = {**tree_of(path), "value_head": {"kernel": jnp.ones((24, 1))}}
    message = (
        "weights that may be linear layers, but neither names, classes nor biases show which of "
        "their axes are inputs, outputs or layers:\n  value_head: (24, 1)\n"
        "Pass the nnx or Equinox module itself, pass layout=jaxmix.Layout(…) with a rule for each "
        "(layout='flax' for convolutions), or leave them out with exclude_modules."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        jaxmix.init("lora", tree, _KEY, target_modules="all-linear")
    options: Any = {"target_modules": "all-linear", "exclude_modules": ["value_head"]}
    assert len(jaxmix.init("lora", tree, _KEY, **options).sites) == 14


def test_user_defined_layout() -> None:
    """Its rules are inverted; modules without a rule are requested by full paths."""
    layout = Layout(
        "mine",
        (
            Rule(r"(?:net\.)*h\.(\d+)\.(up|down)", r"stack.\2", "i o -> o i", r"\1"),
            Rule(r"h\.(\d+)\.out", r"even_{\1%2}.out", "i o -> o i", r"{\1//2}"),
            Rule(r".*\.any[a-z]", "any", None),
        ),
    )
    params = {
        "stack": {"up": jnp.ones((2, 4, 6)), "down": jnp.ones((2, 6, 4))},
        "even_0": {"out": jnp.ones((1, 4, 3))},
        "even_1": {"out": jnp.ones((1, 4, 3))},
        "any": jnp.ones((5, 4)),
    }
    options: dict[str, Any] = {"rank": 1, "layout": layout}
    adapter = jaxmix.init("lora", params, _KEY, target_modules=["up", "out"], **options)
    assert set(adapter.sites) == {"net.h.0.up", "net.h.1.up", "h.0.out", "h.1.out"}
    adapter = jaxmix.init("lora", params, _KEY, target_modules=["x.anyz"], **options)
    assert adapter.sites == ("x.anyz",)
    bare = Layout("bare", (Rule(r"x\.any[a-z]", "any"),))
    with pytest.raises(LayoutError) as caught:
        jaxmix.init("lora", params, _KEY, target_modules="all-linear", layout=bare)
    assert str(caught.value) == (
        "the layout 'bare' matches no module of the params, and target_modules is 'all-linear'. "
        "Pass a list of modules by their full paths."
    )


def test_layers_and_experts_are_counted_by_their_axes() -> None:
    """Each is counted by its own axis, not by the largest."""
    shapes = {"decoder.layers.moe_block.wi_0": (2, 3, 4000, 5000)}
    sites = sites_of(jaxmix.layout.named("maxtext_qwen"), shapes)
    assert set(sites) == {
        f"model.layers.{i}.mlp.experts.{e}.gate_proj" for i in range(3) for e in range(2)
    }


def test_rules_are_parsed_once() -> None:
    """Rules are not parsed again for each tree."""
    layout, caches = jaxmix.layout.named("tunix"), (inverse._parsed, inverse._leaf_pattern)
    sites_of(layout, {"layers.0.attn.q_proj.w": (4, 2, 3)})
    before = [cache.cache_info().misses for cache in caches]
    assert sites_of(layout, {"layers.1.attn.q_proj.w": (4, 2, 3)})
    assert [cache.cache_info().misses for cache in caches] == before
