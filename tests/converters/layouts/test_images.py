"""The tables of image and video models match trees made by the libraries' own loaders.

Recorded by tests/goldens/image_layouts/make.py.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import LayoutError
from jaxmix.families import LoHa, LoKr, LoRA, Replace
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import Place, libraries, named

from ...goldens.image_layouts.state import state
from ...laws.truth import fold
from ...messages import full_text

GOLDENS = sorted((Path(__file__).parents[2] / "goldens" / "image_layouts").glob("*.json"))
by_golden = pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
# The leaves have hundreds of shapes, and each would compile programs that run once.
pytestmark = pytest.mark.usefixtures("no_compiling")

# Tensors whose halves are swapped in a leaf, or are in another order in the last layer, and those
# leaves, which have rules for the original names; and a buffer.
_OPEN = {
    "maxdiffusion_flux": (r"norm_out\.linear", r"norm_out\.Dense_0"),
    "keras_hub_sd3": (
        r"norm_out\.linear|transformer_blocks\.\d\.norm1_context\.linear|pos_embed\.pos_embed",
        r"output_ada_layer_norm\.dense|joint_block_\d\.context_block\.ada_layer_norm\.dense",
    ),
}


def is_open(path: Path, name: str, index: int) -> bool:
    """Whether the table has no rule for a tensor (0) or a leaf (1), as documented."""
    pattern = _OPEN.get(golden(path)[0]["layout"], ("", ""))[index]
    return re.fullmatch(pattern, re.sub(r"\.(weight|bias|kernel)$", "", name)) is not None


@cache
def golden(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the record, the leaves, and PyTorch's tensors."""
    record = json.loads(path.read_text())
    leaves = load_file(path.with_suffix(".safetensors"))
    large = {name: np.zeros(s, np.float16) for name, s in record["leaves"].items()}
    return record, {**large, **leaves}, state(record["torch"])


def place_of(path: Path, name: str) -> Place | None:
    """Returns the only place of one of PyTorch's tensors, by the golden's table."""
    record, leaves, _ = golden(path)
    is_bias = name.endswith(".bias")
    site = name.removesuffix(".bias").removesuffix(".weight")
    places = named(record["layout"]).places(site, "bias" if is_bias else "weight")
    hits = [place for place in places if place.leaf in leaves]
    assert len(hits) == (not is_open(path, name, 0)), (name, hits)
    return hits[0] if hits else None


@by_golden
def test_every_tensor_is_at_its_place(path: Path) -> None:
    """Each leaf is read as PyTorch's tensor, and all leaves belong to some tensor."""
    _, leaves, tensors = golden(path)
    stored = load_file(path.with_suffix(".safetensors"))
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        place = place_of(path, name)
        if place is None:
            continue
        leaf = jnp.asarray(leaves[place.leaf].astype(np.float32))
        assert place.shape(leaf.shape) == tensor.shape, name
        if place.leaf in stored:
            np.testing.assert_array_equal(np.asarray(place.get(leaf)), tensor, err_msg=name)
        counts[place.leaf] = counts.get(place.leaf, 0) + tensor.size
    assert counts == {
        name: leaf.size for name, leaf in leaves.items() if not is_open(path, name, 1)
    }


@by_golden
def test_table_finds_every_site_of_its_tree(path: Path) -> None:
    """Each weight has one site, under diffusers' name."""
    record, _, tensors = golden(path)
    shapes = {name: tuple(shape) for name, shape in record["leaves"].items()}
    sites = set(sites_of(named(record["layout"]), shapes))
    weights = [name for name in tensors if not name.endswith(".bias")]
    named_ = {name.removesuffix(".weight") for name in weights if not is_open(path, name, 0)}
    # By their authors' names they have leaves.
    original = r"(final_layer|joint_blocks\.\d+\.context_block)\.adaLN_modulation\.1"
    assert {name for name in sites if not re.fullmatch(original, name)} == named_


def at(path: Path, name: str) -> Place:
    """The place of a tensor that has one."""
    place = place_of(path, name)
    assert place is not None
    return place


def modules(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights of linear layers and convolutions that have a place."""
    tensors = golden(path)[2]
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim > 1 and tensor.size < 5000
        if place_of(path, name)
    }


def adapters(path: Path) -> list[Adapter]:
    """Returns a LoRA, a LoHa, a LoKr, a DoRA and new biases; some modules have two of them."""
    rng = np.random.default_rng(len(path.stem))

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape)

    last = {re.sub(r"\d+", "#", site): site for site in modules(path)}
    # Some that share a leaf, and some others.
    parts_of_leaves = [s for s in last.values() if "/" in str(at(path, f"{s}.weight").index)]
    sites = [*parts_of_leaves[::2], *list(last.values())[:: max(1, len(last) // 7)]]
    sites = list(dict.fromkeys(sites))
    parts: dict[str, dict[str, Any]] = {"LoRA": {}, "LoHa": {}, "LoKr": {}, "DoRA": {}, "bias": {}}
    for i, site in enumerate(sites):
        out, *ins = modules(path)[site]
        size = int(np.prod(ins))
        up, down = normal(out, 2), normal(2, size)
        if i % 4 == 0:
            parts["LoRA"][site] = LoRA(down, up, 0.8)
        if i % 4 == 1:
            parts["LoKr"][site] = LoKr((normal(2, 1),), (normal(out // 2, size),), 0.3)
        if i % 4 == 2:
            parts["DoRA"][site] = LoRA(down, up, 0.5, magnitude=1000 + np.abs(normal(out)))
        if i % 4 == 3 or i % 8 == 2:
            parts["LoHa"][site] = LoHa(up, down, normal(out, 2), normal(2, size), 0.5)
        if i % 3 == 1 and f"{site}.bias" in golden(path)[2]:
            parts["bias"][site] = Replace(bias=normal(out))
    return [
        Adapter(updates, 1.0 if name == "bias" else 0.7, name) for name, updates in parts.items()
    ]


def nested(leaves: dict[str, Any]) -> Any:
    """Returns the leaves as nested dicts, as the libraries have them."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def flat(tree: Any, above: str = "") -> dict[str, Any]:
    """Returns the leaves by their dotted names."""
    if not isinstance(tree, dict):
        return {above[:-1]: tree}
    return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{above}{name}.").items()}


@by_golden
def test_composed_trees_match_the_formulas(path: Path) -> None:
    """Every kind changes the library's tree, whose layout is inferred from its names."""
    _, leaves, tensors = golden(path)
    mixed = adapters(path)
    with jax.enable_x64(True):
        tree = nested({name: jnp.asarray(leaf.astype(float)) for name, leaf in leaves.items()})
        new = flat(jaxmix.compose(tree, mixed))
        for name, tensor in tensors.items():
            site, _, part = name.rpartition(".")
            place = place_of(path, name)
            if place is None or tensor.size >= 5000:
                continue
            output = np.asarray(place.get(new[place.leaf]))
            chain = [(a.strength, a.updates[site]) for a in mixed if site in a.updates]
            expected = tensor
            if part == "bias":
                changes = [update.bias for _, update in chain if isinstance(update, Replace)]
                expected = np.asarray(changes[-1] if changes else tensor)
            else:
                chain = [link for link in chain if not isinstance(link[1], Replace)]
                matrix = fold(chain, tensor.reshape(len(tensor), -1).astype(float))[0]
                assert matrix is not None
                expected = matrix.reshape(tensor.shape)
            np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-8, err_msg=name)


def test_every_table_has_a_golden() -> None:
    """The table of fused names is excepted, and tested below."""
    covered = {golden(path)[0]["layout"] for path in GOLDENS}
    known = ("maxdiffusion", "flax_unet", "keras_hub_sd3")
    tables = {name for name in libraries() if name.startswith(known)}
    assert tables - covered == {"maxdiffusion_flux_bfl"}


def tree_of(stem: str) -> Any:
    """Returns a golden's leaves as nested dicts of zeros."""
    (path,) = (path for path in GOLDENS if path.stem == stem)
    return nested({name: jnp.zeros(leaf.shape) for name, leaf in golden(path)[1].items()})


def written(folder: Path, **tensors: Any) -> Path:
    """Writes a file with LoRAs, given by their names up to the factors and their shapes."""
    path = folder / "lora.safetensors"
    arrays = {}
    for name, (out, *ins) in tensors.items():
        arrays[f"{name}.lora_A.weight"] = np.ones((1, *ins), np.float32)
        column = np.arange(1, out + 1, dtype=np.float32).reshape(out, 1, *(1 for _ in ins[1:]))
        arrays[f"{name}.lora_B.weight"] = column
    save_file(arrays, path)
    return path


def changed(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves that are not zero."""
    return {name: np.asarray(leaf) for name, leaf in flat(tree).items() if np.asarray(leaf).any()}


def test_prefix_of_a_transformers_file(tmp_path: Path) -> None:
    """The prefix of the pipeline's part is not part of the names."""
    names = {
        "transformer.transformer_blocks.1.attn.to_k": (12, 12),
        "transformer.single_transformer_blocks.2.proj_mlp": (48, 12),
    }
    lora = jaxmix.load(written(tmp_path, **names))
    tree = tree_of("maxdiffusion-flux")
    double, single = (
        f"scanned_{x}_blocks.Flux{y}TransformerBlock_0"
        for x, y in (("double", ""), ("single", "Single"))
    )
    new = changed(jaxmix.compose(tree, lora))
    qkv = new.pop(f"{double}.attn.i_qkv.kernel")
    rows = np.arange(1.0, 13)
    np.testing.assert_array_equal(qkv[1, :, 12:24], np.broadcast_to(rows, (12, 12)))
    assert not qkv[0].any() and not qkv[1, :, :12].any() and not qkv[1, :, 24:].any()
    mlp = new.pop(f"{single}.mlp_and_out.lin_mlp.kernel")
    assert mlp[2].all() and not mlp[:2].any() and not new
    # The same leaves in a pipeline of several parts.
    pipeline = changed(jaxmix.compose({"transformer": tree, "vae": {"w": jnp.zeros(2)}}, lora))
    np.testing.assert_array_equal(pipeline[f"transformer.{double}.attn.i_qkv.kernel"], qkv)


def test_file_of_a_unet_and_text_encoders(tmp_path: Path) -> None:
    """One file for a pipeline changes each of its parts."""
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    unet = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    path = written(
        tmp_path,
        **{
            f"unet.{unet}": (8, 6),
            "unet.up_blocks.0.resnets.1.conv_shortcut": (8, 12, 1, 1),
            f"text_encoder.{text}": (6, 6),
            f"text_encoder_2.{text}": (10, 10),
        },
    )
    encoders = {
        "text_encoder": nested({f"{text}.kernel": jnp.zeros((6, 6))}),
        "text_encoder_2": nested({f"{text}.kernel": jnp.zeros((10, 10))}),
    }
    tree = {"unet": tree_of("maxdiffusion-sdxl"), **encoders}
    new = changed(jaxmix.compose(tree, jaxmix.load(path)))
    assert {name: leaf.shape for name, leaf in new.items()} == {
        "unet.down_blocks_1.attentions_0.transformer_blocks_1.attn2.to_k.kernel": (6, 8),
        "unet.up_blocks_0.resnets_1.conv_shortcut.kernel": (1, 1, 12, 8),
        f"text_encoder.{text}.kernel": (6, 6),
        f"text_encoder_2.{text}.kernel": (10, 10),
    }
    (kernel,) = (leaf for name, leaf in new.items() if "attn2" in name)
    np.testing.assert_array_equal(kernel, np.broadcast_to(np.arange(1.0, 9), (6, 8)))


def test_file_in_wans_names(tmp_path: Path) -> None:
    """Most trainers write the names of Wan's authors."""
    names = {
        "diffusion_model.blocks.1.self_attn.q": (12, 12),
        "diffusion_model.blocks.1.ffn.0": (14, 12),
        "diffusion_model.head.head": (16, 12),
    }
    lora = jaxmix.load(written(tmp_path, **names))
    scanned = changed(jaxmix.compose(tree_of("maxdiffusion-wan"), lora))
    unscanned = changed(jaxmix.compose(tree_of("maxdiffusion-wan-unscanned"), lora))
    assert set(unscanned) == {
        "blocks.1.attn1.query.kernel",
        "blocks.1.ffn.act_fn.proj.kernel",
        "proj_out.kernel",
    }
    for name, leaf in unscanned.items():
        stacked = scanned[name.replace("blocks.1", "blocks")]
        np.testing.assert_array_equal(stacked[1] if "blocks" in name else stacked, leaf)


def test_names_of_black_forest_labs(tmp_path: Path) -> None:
    """Fused sites are complete leaves; one that is split in the tree is refused by its name."""
    names = {
        "diffusion_model.double_blocks.1.txt_attn.qkv": (36, 12),
        "diffusion_model.double_blocks.1.img_mlp.0": (48, 12),
        "diffusion_model.final_layer.adaLN_modulation.1": (24, 12),
        "diffusion_model.single_blocks.2.linear1": (84, 12),
    }
    lora = jaxmix.load(written(tmp_path, **names))
    new = changed(jaxmix.compose(tree_of("maxdiffusion-flux-unscanned"), lora))
    assert set(new) == {
        "double_blocks_1.attn.e_qkv.kernel",
        "double_blocks_1.img_mlp.layers_0.kernel",
        "norm_out.Dense_0.kernel",
        "single_blocks_2.linear1.kernel",
    }
    # A fused layer that is several leaves of the stacked tree.
    stacked = changed(jaxmix.compose(tree_of("maxdiffusion-flux"), lora))
    single = "scanned_single_blocks.FluxSingleTransformerBlock_0"
    fused = new["single_blocks_2.linear1.kernel"]
    assert fused.shape == (12, 84)
    np.testing.assert_array_equal(stacked[f"{single}.lin_qkv.kernel"][2], fused[:, :36])
    mlp = stacked[f"{single}.mlp_and_out.lin_mlp.kernel"]
    np.testing.assert_array_equal(mlp[2], fused[:, 36:])
    assert not mlp[:2].any() and len(stacked) == 5


@pytest.mark.parametrize("tree", ["maxdiffusion-flux", "maxdiffusion-flux-unscanned"])
def test_halves_that_are_swapped_in_diffusers(tree: str, tmp_path: Path) -> None:
    """`norm_out.linear` changes the leaf as the original module with its halves in order does."""
    names = {"transformer.norm_out.linear": (24, 12), "transformer.proj_out": (4, 12)}
    lora = jaxmix.load(written(tmp_path, **names))
    new = changed(jaxmix.compose(tree_of(tree), lora))
    assert set(new) == {"norm_out.Dense_0.kernel", "proj_out.kernel"}
    rows = np.concatenate([np.arange(13.0, 25), np.arange(1.0, 13)])
    np.testing.assert_array_equal(new["norm_out.Dense_0.kernel"], np.broadcast_to(rows, (12, 24)))


def test_halves_that_are_swapped_on_the_tree_of_diffusers_order(tmp_path: Path) -> None:
    """The adapter has the original name, the leaf the order of diffusers."""
    lora = jaxmix.load(written(tmp_path, **{"final_layer.adaLN_modulation.1": (24, 12)}))
    tree = tree_of("maxdiffusion-flux")
    tree["norm_out"] = {"linear": tree["norm_out"].pop("Dense_0")}
    new = changed(jaxmix.compose(tree, lora))
    rows = np.concatenate([np.arange(13.0, 25), np.arange(1.0, 13)])
    assert set(new) == {"norm_out.linear.kernel"}
    np.testing.assert_array_equal(new["norm_out.linear.kernel"], np.broadcast_to(rows, (12, 24)))


def test_swapped_halves_of_keras_hub(tmp_path: Path) -> None:
    """Only those of the last layer and of the last block are swapped."""
    names = {"transformer_blocks.0.norm1_context.linear": 72}
    names |= {"transformer_blocks.1.norm1_context.linear": 24, "norm_out.linear": 24}
    lora = jaxmix.load(written(tmp_path, **{name: (n, 12) for name, n in names.items()}))
    new = changed(jaxmix.compose(tree_of("keras_hub-sd3"), lora))
    swapped = np.concatenate([np.arange(13.0, 25), np.arange(1.0, 13)])
    expected = {
        "joint_block_0.context_block.ada_layer_norm.dense.kernel": np.arange(1.0, 73),
        "joint_block_1.context_block.ada_layer_norm.dense.kernel": swapped,
        "output_ada_layer_norm.dense.kernel": swapped,
    }
    assert set(new) == set(expected)
    for name, rows in expected.items():
        np.testing.assert_array_equal(new[name], np.broadcast_to(rows, (12, len(rows))))


def test_names_of_both_schemes_mix(tmp_path: Path) -> None:
    """A file in Black Forest Labs' names and one in diffusers', in order, on one tree."""
    fused = {"diffusion_model.double_blocks.1.img_attn.qkv": (36, 12)}
    first = jaxmix.load(written(tmp_path, **fused))
    shapes = {"transformer.transformer_blocks.1.attn.to_k": (12, 12)}
    second = jaxmix.load(written(tmp_path, **shapes), name="second")
    for name in ("maxdiffusion-flux", "maxdiffusion-flux-unscanned"):
        tree = tree_of(name)
        both, in_diffusers, in_original = (
            changed(jaxmix.compose(tree, parts)) for parts in ([first, second], first, second)
        )
        [leaf] = both
        np.testing.assert_array_equal(both[leaf], in_diffusers[leaf] + in_original[leaf])


def test_sites_of_no_model_are_refused(tmp_path: Path) -> None:
    """They are refused even if all other sites are known."""
    names = {
        "diffusion_model.double_blocks.1.img_attn.qkv": (36, 12),
        "diffusion_model.x.y": (12, 12),
    }
    lora = jaxmix.load(written(tmp_path, **names))
    message = (
        "1 site of the adapters can't be placed in the params by the layout "
        "'maxdiffusion_flux_bfl':\n  x.y: the layout has no rule for its weight\n"
        "Was the adapter trained on another model? If the leaves have other names, pass "
        "layout=jaxmix.Layout(…) with rules. No name map matches all of them to leaves."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        jaxmix.compose(tree_of("maxdiffusion-flux"), lora)


def test_queries_and_keys_of_a_stack_stay_apart() -> None:
    """`attach` keeps the maps of sites that share a stacked leaf, without a dense weight."""
    lora, dora = (
        {
            f"transformer_blocks.{i}.attn.to_{x}": LoRA(
                np.ones((1, 12)) * i, np.ones((12, 1)), 1.0, magnitude=magnitude
            )
            for i, x in ((0, "q"), (1, "q"), (1, "v"))
        }
        for magnitude in (None, np.arange(1.0, 13))
    )
    tree = jax.tree.map(lambda leaf: leaf + 1.0, tree_of("maxdiffusion-flux"))
    mixed = [Adapter(lora, 0.5, "lora"), Adapter(dora, 0.5, "dora")]
    leaf = jaxmix.attach(tree, mixed)["scanned_double_blocks"]["FluxTransformerBlock_0"]["attn"]
    weight = leaf["i_qkv"]["kernel"].apart()
    expected = jaxmix.compose(tree, mixed)["scanned_double_blocks"]["FluxTransformerBlock_0"]
    np.testing.assert_allclose(weight.dense(), expected["attn"]["i_qkv"]["kernel"], rtol=1e-5)
