"""OpenCLIP's names of text encoders, which single files of SDXL and Stable Diffusion 2 have."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.comfyui import export_comfyui
from jaxmix.converters.kohya import export_kohya
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError
from jaxmix.families import Delta, LoRA
from tests.converters.cli.running import Captured, main

WIDTH, LAYERS = 8, 2
SDXL, REFINER, SD2 = (
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
    "cond_stage_model.model.",
)
COMPONENTS = {SDXL: "text_encoder_2.", REFINER: "text_encoder_2.", SD2: "text_encoder."}
Arrays = dict[str, np.ndarray]
DRAW = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random numbers."""
    return DRAW.normal(size=shape).astype(np.float32)


def text_encoder(prefix: str = "") -> Arrays:
    """A text encoder in transformers' names; the projection is square, as in SDXL."""
    model, wide = f"{prefix}text_model.", 4 * WIDTH
    tensors = {
        f"{model}embeddings.token_embedding.weight": normal(11, WIDTH),
        f"{model}embeddings.position_embedding.weight": normal(7, WIDTH),
        f"{model}final_layer_norm.weight": normal(WIDTH),
        f"{model}final_layer_norm.bias": normal(WIDTH),
        f"{prefix}text_projection.weight": normal(WIDTH, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"{model}encoder.layers.{i}."
        sizes = {f"self_attn.{x}_proj": (WIDTH, WIDTH) for x in ("q", "k", "v", "out")}
        sizes |= {"mlp.fc1": (wide, WIDTH), "mlp.fc2": (WIDTH, wide)}
        for name, shape in sizes.items():
            tensors[f"{layer}{name}.weight"] = normal(*shape)
            tensors[f"{layer}{name}.bias"] = normal(shape[0])
        for name in ("layer_norm1.weight", "layer_norm2.weight", "layer_norm1.bias"):
            tensors[f"{layer}{name}"] = normal(WIDTH)
    return tensors


_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}
_OTHERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def in_open_clip(tree: Mapping[str, Any], component: str, prefix: str) -> Arrays:
    """A text encoder by OpenCLIP's names: q, k and v are joined, the projection is transposed."""
    tree = {name.removeprefix(component): np.asarray(x) for name, x in tree.items()}
    tensors = {f"{prefix}{new}": tree[old] for old, new in _OTHERS.items()}
    tensors[f"{prefix}text_projection"] = np.ascontiguousarray(tree["text_projection.weight"].T)
    for i in range(LAYERS):
        layer, block = f"text_model.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
        for end in ("weight", "bias"):
            parts = [tree[f"{layer}self_attn.{x}_proj.{end}"] for x in "qkv"]
            tensors[f"{block}attn.in_proj_{end}"] = np.concatenate(parts)
        for name, x in tree.items():
            if name.startswith(layer) and name.split(".")[-2] not in ("q_proj", "k_proj", "v_proj"):
                module, _, end = name.removeprefix(layer).rpartition(".")
                tensors[f"{block}{_PARTS[module]}.{end}"] = x
    return tensors


def rest_of_sdxl() -> Arrays:
    """The U-Net, the first text encoder and the VAE, a few tensors of each."""
    first = {n: x for n, x in text_encoder("conditioner.embedders.0.transformer.").items()}
    del first["conditioner.embedders.0.transformer.text_projection.weight"]
    unet = "model.diffusion_model."
    return first | {
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": normal(6, 6),
        f"{unet}middle_block.1.proj_in.weight": normal(6, 6),
        f"{unet}label_emb.0.0.weight": normal(8, 10),
        "first_stage_model.decoder.conv_in.weight": normal(4, 4, 3, 3),
    }


def factors(kind: str, rows: int, columns: int) -> Arrays:
    """An update of a weight by LyCORIS's names."""
    lora = {
        "lora_up.weight": normal(rows, 2),
        "lora_down.weight": normal(2, columns),
        "alpha": np.asarray(1, np.float32),
    }
    match kind:
        case "dora":
            return {**lora, "dora_scale": 1 + np.abs(normal(rows, 1))}
        case "loha":
            sides = {"a": (rows, 2), "b": (2, columns)}
            return {
                f"hada_w{n}_{side}": normal(*size) for n in "12" for side, size in sides.items()
            }
        case "lokr":
            return {"lokr_w1": normal(2, 2), "lokr_w2": normal(rows // 2, columns // 2)}
        case "difference":
            return {"diff": normal(rows, columns), "diff_b": normal(rows)}
        case _:
            return lora


def layers(tree: Arrays, component: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The modules that trainers adapt, without q of the first layer, with the projection."""
    for name, x in tree.items():
        module = name.removeprefix(component).removesuffix(".weight")
        is_matrix = x.ndim == 2 and ".embeddings." not in name
        if is_matrix and module != "text_model.encoder.layers.0.self_attn.q_proj":
            yield module, x.shape


def save(path: Path, modules: Mapping[str, Arrays]) -> Path:
    """A file with the factors of modules."""
    tensors = {
        f"{module}.{end}": x for module, factors in modules.items() for end, x in factors.items()
    }
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return path


def assert_equal(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares all leaves."""
    assert tensors.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(np.asarray(tensors[name]), x, atol=1e-5, err_msg=name)


SPELLED = (
    (SDXL, "lora_te2_"),
    (SD2, "lora_te_"),
    (REFINER, "text_encoder_2."),
    (SD2, "text_encoder."),
)
OTHER_KINDS = ("dora", "loha", "lokr", "difference")


@pytest.mark.one_of(2)
@pytest.mark.parametrize(
    ("at", "prefix", "kind"),
    [
        *((*spelled, "lora") for spelled in SPELLED),
        *((*SPELLED[0], kind) for kind in OTHER_KINDS),
        # How the parts are joined depends on the kind, not on the spelling of their names.
        *(
            pytest.param(*spelled, kind, marks=pytest.mark.thorough)
            for spelled in SPELLED[1:]
            for kind in OTHER_KINDS
        ),
    ],
)
def test_text_encoder_of_a_single_file(at: str, prefix: str, kind: str, tmp_path: Path) -> None:
    """The file has the weights of transformers' modules with the adapter, joined afterwards."""
    component = COMPONENTS[at]
    tree = text_encoder(component)
    base = save(tmp_path / "base.safetensors", {})
    save_file(
        in_open_clip(tree, component, at) | {"model.diffusion_model.x.weight": normal(2, 2)}, base
    )
    updates = {module: factors(kind, *shape) for module, shape in layers(tree, component)}
    updates["text_projection"].pop("diff_b", None)  # it has no bias
    is_flat = prefix.startswith("lora")
    spelled = {m: m.replace(".", "_") if is_flat else m for m in updates}
    file = save(
        tmp_path / "x.safetensors", {f"{prefix}{spelled[m]}": own for m, own in updates.items()}
    )
    plain = save(tmp_path / "y.safetensors", {f"{component}{m}": u for m, u in updates.items()})
    expected = in_open_clip(jaxmix.compose(tree, jaxmix.load(plain, base=tree)), component, at)
    out = tmp_path / "out.safetensors"
    merge_checkpoint(base, jaxmix.load(file, base=base), out, verify=True)
    merged = load_file(out)
    untouched = merged.pop("model.diffusion_model.x.weight")
    assert np.array_equal(untouched, load_file(base)["model.diffusion_model.x.weight"])
    assert_equal(merged, expected)


def test_merge_of_sdxl_on_the_command_line(tmp_path: Path, capsys: Captured) -> None:
    """A file of kohya's scripts changes the U-Net and both text encoders of a single file."""
    tree = text_encoder("text_encoder_2.")
    weights = rest_of_sdxl() | in_open_clip(tree, "text_encoder_2.", SDXL)
    base, file, out = (tmp_path / f"{name}.safetensors" for name in ("sdxl", "style", "out"))
    save_file(weights, base)
    first = "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight"
    unet = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    block = f"{SDXL}transformer.resblocks.1."
    names = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (unet, slice(None)),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": (first, slice(None)),
        "lora_te2_text_model_encoder_layers_1_self_attn_k_proj": (
            f"{block}attn.in_proj_weight",
            slice(WIDTH, 2 * WIDTH),
        ),
        "lora_te2_text_model_encoder_layers_1_mlp_fc2": (f"{block}mlp.c_proj.weight", slice(None)),
    }
    updates, expected = {}, dict(weights)
    for name, (leaf, rows) in names.items():
        shape = weights[leaf][rows].shape
        updates[name] = update = factors("lora", *shape)
        expected[leaf] = expected[leaf].copy()
        expected[leaf][rows] += update["lora_up.weight"] @ update["lora_down.weight"] / 2
    save(file, updates)
    assert main("merge", base, "-a", file, "-o", out) == 0
    assert "4 tensors changed" in capsys.readouterr().out
    assert_equal(load_file(out), expected)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "difference"])
@pytest.mark.parametrize("at", [SDXL, SD2])
def test_open_clip_names_on_transformers_names(at: str, kind: str, tmp_path: Path) -> None:
    """q, k and v get their rows of the update of all three."""
    component = COMPONENTS[at]
    tree = text_encoder(component)
    original = in_open_clip(tree, component, at)
    block = f"{at}transformer.resblocks.1."
    names = {
        f"{block}attn.in_proj": (3 * WIDTH, WIDTH),
        f"{block}mlp.c_fc": (4 * WIDTH, WIDTH),
        f"{block}attn.out_proj": (WIDTH, WIDTH),
    }
    updates = {name: factors(kind, *shape) for name, shape in names.items()}
    file = save(tmp_path / "x.safetensors", updates)
    adapter = jaxmix.load(file)
    on_disk = jaxmix.compose(original, adapter, names="unet")
    assert_equal(in_open_clip(jaxmix.compose(tree, adapter, names="unet"), component, at), on_disk)
    reloaded = jaxmix.load(file, base=tree)
    assert_equal(in_open_clip(jaxmix.compose(tree, reloaded), component, at), on_disk)
    changed = {name for name, x in on_disk.items() if not np.array_equal(x, original[name])}
    ends = ("weight", "bias") if kind == "difference" else ("weight",)
    assert changed == {
        f"{n}_{end}" if n.endswith("in_proj") else f"{n}.{end}" for n in names for end in ends
    }


def test_projection_is_transposed_in_both_directions(tmp_path: Path) -> None:
    """A square projection has equal names and sizes in both, but not the same numbers."""
    tree = text_encoder("text_encoder_2.")
    original = in_open_clip(tree, "text_encoder_2.", SDXL)
    update = factors("lora", WIDTH, WIDTH)
    delta = update["lora_up.weight"] @ update["lora_down.weight"] / 2
    leaves = {"text_encoder_2.text_projection.weight": tree, f"{SDXL}text_projection": original}
    for key, mine in (
        ("lora_te2_text_projection", "text_encoder_2.text_projection.weight"),
        ("text_encoder_2.text_projection", "text_encoder_2.text_projection.weight"),
        (f"{SDXL}text_projection", f"{SDXL}text_projection"),
    ):
        file = save(tmp_path / "x.safetensors", {key: update})
        for leaf, base in leaves.items():
            composed = jaxmix.compose(dict(base), jaxmix.load(file, base=base))
            change = delta if leaf == mine else delta.T
            assert_equal(composed, {**base, leaf: base[leaf] + change})


def test_fused_update_of_a_tree_in_open_clip_names() -> None:
    """A site may have the name of the module or of the tensor; updates of parts add to it."""
    tree = in_open_clip(text_encoder(), "", SDXL)
    name = f"{SDXL}transformer.resblocks.0.attn.in_proj"
    weight, bias = normal(3 * WIDTH, WIDTH), normal(3 * WIDTH)
    expected = {**tree, f"{name}_weight": tree[f"{name}_weight"] + weight}
    composed = jaxmix.compose(dict(tree), jaxmix.Adapter({f"{name}_weight": Delta(weight)}))
    assert_equal(composed, expected)
    expected[f"{name}_bias"] = tree[f"{name}_bias"] + bias
    adapter = jaxmix.Adapter({name: Delta(weight, bias)})
    assert_equal(jaxmix.compose(dict(tree), adapter, names="unet"), expected)
    lora = LoRA(normal(2, WIDTH), normal(WIDTH, 2), 0.5)
    part = jaxmix.Adapter(
        {"text_encoder_2.text_model.encoder.layers.0.self_attn.v_proj": lora}, name="v"
    )
    expected[f"{name}_weight"] = expected[f"{name}_weight"].copy()
    expected[f"{name}_weight"][2 * WIDTH :] += 0.5 * lora.b @ lora.a
    assert_equal(jaxmix.compose(dict(tree), [adapter, part], names="unet"), expected)


def test_open_clip_names_are_exported_as_transformers_names(tmp_path: Path) -> None:
    """Programs read no other names."""
    fused = LoRA(normal(2, WIDTH), normal(3 * WIDTH, 2), 0.5)
    adapter = jaxmix.Adapter(
        {
            f"{SDXL}transformer.resblocks.1.attn.in_proj": fused,
            f"{SDXL}transformer.resblocks.1.mlp.c_fc": LoRA(normal(2, 8), normal(32, 2), 1.0),
        }
    )
    tree = text_encoder("text_encoder_2.")
    expected = jaxmix.compose(dict(tree), adapter, names="unet")
    for export, start in (
        (export_kohya, "lora_te2_text_model_encoder_layers_1_self_attn_k_proj."),
        (export_comfyui, "text_encoder_2.text_model.encoder.layers.1.mlp.fc1."),
    ):
        file = export(adapter, tmp_path / "x.safetensors", force=True)
        assert any(key.startswith(start) for key in load_file(file))
        assert_equal(jaxmix.compose(dict(tree), jaxmix.load(file, base=tree)), expected)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """The error has the name in the file."""
    file = save(
        tmp_path / "x.safetensors",
        {f"{SDXL}transformer.resblocks.1.mlp.c_x": factors("lora", 32, 8)},
    )
    with pytest.raises(CheckpointError) as caught:
        jaxmix.load(file, base=text_encoder("text_encoder_2."))
    assert f"{SDXL}transformer.resblocks.1.mlp.c_x: no such module" in str(caught.value)
