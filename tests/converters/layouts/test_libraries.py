"""The tables of the model libraries match the libraries' own trees of Hugging Face weights.

Recorded by tests/goldens/layouts/make.py, in which the libraries' own loaders and models took part.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix.converters.layouts import TABLES
from jaxmix.converters.layouts.maxtext import maxtext_gemma3
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.tree import Tree

from .models import adapters, linears, state

# The leaves have many shapes, and each would compile programs that run once.
pytestmark = pytest.mark.usefixtures("no_compiling")
GOLDENS = sorted((Path(__file__).parents[2] / "goldens" / "layouts").glob("*.json"))
# Which table is for which golden, where it is not the library's name.
TABLE: dict[str, Layout | str] = {
    "maxtext-llama": "maxtext_llama",
    "maxtext-qwen2": "maxtext_qwen",
    "maxtext-qwen3": "maxtext_qwen",
    "maxtext-gemma2": "maxtext_gemma2",
    "maxtext-gemma3_deep": maxtext_gemma3(layers=8),
    "gemma-gemma": "gemma_untransposed",
    "tunix-gemma2": "tunix_gemma",
    "tunix-gemma3": "tunix_gemma",
    "keras_hub-gemma": "keras_hub_gemma",
}
# Those for which it has to be given: leaves of these names may lie in several ways.
SAID = ("maxtext-llama", "maxtext-qwen2", "maxtext-qwen3", "maxtext-gemma3_deep")


@cache
def golden(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the record, the library's leaves, and the models' outputs."""
    tensors = load_file(path.with_suffix(".safetensors"))
    leaves = {k[5:]: v for k, v in tensors.items() if k.startswith("leaf.")}
    record = json.loads(path.read_text())
    return record, leaves, {k: v for k, v in tensors.items() if not k.startswith("leaf.")}


def kind_of(path: Path) -> str:
    return golden(path)[0]["kind"].partition("-")[0]


def table(path: Path) -> Layout:
    """Returns the layout of a golden's tree."""
    stem = path.stem.removesuffix("-unscanned")
    return named(TABLE.get(stem, golden(path)[0]["library"]))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_every_tensor_is_at_its_place(path: Path) -> None:
    """The library's leaf equals the tensor bit for bit, except for a scale."""
    record, leaves, _ = golden(path)
    assert {name: list(leaf.shape) for name, leaf in leaves.items()} == record["leaves"]
    layout = table(path)
    placed: set[str] = set()
    for name, tensor in state(kind_of(path)).items():
        site, _, part = name.rpartition(".")
        places = [p for p in layout.places(site, part) if p.leaf in leaves]  # pyright: ignore
        if not places and _is_left_out(record, name):
            continue
        assert len(places) == 1, name
        value = np.asarray(places[0].get(jnp.asarray(leaves[places[0].leaf])))
        np.testing.assert_allclose(value.reshape(tensor.shape), tensor, rtol=1e-6, err_msg=name)
        placed.add(places[0].leaf)
    unplaced = [name for name in set(leaves) - placed if not _is_left_out(record, name)]
    assert not unplaced


def _is_left_out(record: dict[str, Any], name: str) -> bool:
    """Whether no rule can express a tensor (MaxText's norms of Gemma), or the library lacks it."""
    if record["kind"] == "gemma" and ("post_attention_layernorm" in name or "pre_ffw_norm" in name):
        return True
    if record["library"] == "maxtext" and "gemma" in record["kind"]:
        return "norm" in name or "embed" in name
    return False


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_library_matches_torch(path: Path) -> None:
    """The base matches, and so does a LoRA, an OFT and a DoRA at every linear layer."""
    record, _, outputs = golden(path)
    # EasyDeL's logits are off by 3e-3 without adapters too.
    tolerance = 1e-2 if record["library"] == "easydel" else 1e-4
    if not outputs:
        assert path.stem.startswith("maxtext")
        return
    for name in ("base", "composed"):
        expected = outputs[f"torch_{name}"]
        np.testing.assert_allclose(outputs[name], expected, atol=tolerance * np.abs(expected).max())
    assert np.abs(outputs["base"] - outputs["composed"]).max() > 0.1


_OUTPUTS = ("o_proj", "down_proj")


@cache
def mixed(kind: str) -> jaxmix.Mix:
    """Returns a mix for the second layer: OFTs of the outputs of MLP and attention, else DoRAs.

    What adds is the DoRA's too, and every kind is tried on every form of rule elsewhere.
    """
    _, oft, dora = (_at(part, ".1.") for part in adapters(kind).parts)
    rotated = {site: update for site, update in oft.updates.items() if site.endswith(_OUTPUTS)}
    rescaled = {site: update for site, update in dora.updates.items() if site not in rotated}
    return jaxmix.mix(
        jaxmix.Adapter(rotated, oft.strength, oft.name),
        jaxmix.Adapter(rescaled, dora.strength, dora.name),
    )


@cache
def composed(kind: str) -> dict[str, jax.Array]:
    """Returns the flat dict of a kind with its mix, for all libraries that have this kind."""
    return jaxmix.compose(state(kind), mixed(kind))


@pytest.mark.one_of(2)
@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_composed_trees_match(path: Path) -> None:
    """The layout is inferred, and the library's tree changes as the flat dict does."""
    _, leaves, _ = golden(path)
    kind = kind_of(path)
    layout = table(path) if path.stem.removesuffix("-unscanned") in SAID else None
    expected = composed(kind)
    tree = nested(leaves)
    output = dict(
        zip(leaves, _flat(jaxmix.compose(tree, mixed(kind), layout=layout), leaves), strict=True)
    )
    for site in (s for s in linears(kind) if ".1." in s):
        (place,) = [p for p in table(path).places(site, "weight") if p.leaf in leaves]
        array = np.asarray(place.get(jnp.asarray(output[place.leaf])))
        np.testing.assert_allclose(array, expected[f"{site}.weight"], rtol=3e-5, atol=3e-6)
    touched = {p.leaf for s in linears(kind) for p in table(path).places(s, "weight")}
    assert all(output[name] is leaf for name, leaf in leaves.items() if name not in touched)


def _at(part: jaxmix.Adapter, ending: str) -> jaxmix.Adapter:
    updates = {site: update for site, update in part.updates.items() if ending in site}
    return jaxmix.Adapter(updates, part.strength, part.name)


def nested(leaves: dict[str, np.ndarray]) -> Any:
    """Returns the leaves as a nested dict, as most libraries have them."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def _flat(tree: Any, leaves: dict[str, np.ndarray]) -> list[Any]:
    flat_tree = Tree.of(tree)
    return [flat_tree.leaves[flat_tree.positions[name]] for name in leaves]


def test_every_table_has_a_golden() -> None:
    """Tables that were written from sources only, and those of images, are excepted."""
    covered = {table(path).name for path in GOLDENS}
    images = ("maxdiffusion", "flax_unet", "keras_hub_sd3")
    texts = {name for name in TABLES if not name.startswith(images)}
    assert texts - covered == {"maxtext_mixtral", "bonsai_gemma3", "openpi", "torchax"}


def test_torchax_keeps_the_state_dict() -> None:
    """Its tree is PyTorch's own, with its names and axes."""
    tensors = state("llama")
    lora = adapters("llama").parts[0]
    plain, named_ = (jaxmix.compose(tensors, lora, layout=layout) for layout in (None, "torchax"))
    assert all(bool((plain[name] == named_[name]).all()) for name in tensors)
