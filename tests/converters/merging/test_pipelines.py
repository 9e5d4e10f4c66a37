"""`merge_checkpoint` into pipelines and components of diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError, LayoutError, ShapeError

from ..bases import contents, header, save_adapter
from ..pipelines import (
    attention,
    factors,
    merged_by_hand,
    save_pipeline,
    save_weights,
    tensors_of,
)
from .conftest import Stop, breaking

KOHYA = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te1"}
KOHYA |= {"text_encoder_2": "lora_te2"}
PEFT = ("lora_A.weight", "lora_B.weight")


def kohya(file: Path, tensors: dict[str, np.ndarray], *components: str, **prefixes: str) -> Path:
    """A file of kohya's scripts for these components."""
    made: dict[str, np.ndarray] = {}
    for component in components:
        prefix = prefixes.get(component, KOHYA[component])
        made |= factors(tensors, component, lambda name: f"{prefix}_{name.replace('.', '_')}")  # noqa: B023
    save_file(made, file)
    return file


def dotted(file: Path, tensors: dict[str, np.ndarray], **prefixes: str) -> Path:
    """A file with dots in its names, for each component under a prefix."""
    made: dict[str, np.ndarray] = {}
    for component, prefix in prefixes.items():
        made |= factors(tensors, component, lambda name: prefix + name, PEFT, alpha=False)  # noqa: B023
    save_file(made, file)
    return file


def assert_merged(base: Path, out: Path, *components: str, alpha: bool = True) -> None:
    """The output is the base plus the LoRAs of the components; everything else is its bytes."""
    before, files, found = contents(base), contents(out), tensors_of(out)
    tensors = tensors_of(base)
    right = merged_by_hand(tensors, *components, alpha=alpha)
    changed = {f"{c}.{name}.weight" for c in components for name in attention(tensors, c)}
    assert changed and files.keys() == before.keys()
    for name, tensor in tensors.items():
        if name in changed:
            assert found[name].dtype == tensor.dtype
            wide = found[name].astype(np.float64)
            size = np.abs(right[name]).max()
            eps = float(ml_dtypes.finfo(tensor.dtype).eps)
            assert np.abs(wide - right[name]).max() <= 2 * eps * size, name
            assert np.abs(wide - tensor.astype(np.float64)).max() > 0.1, name
        else:
            assert found[name].tobytes() == tensor.tobytes(), name
    for name, data in files.items():
        if not name.endswith(".safetensors"):
            assert data == before[name], name
        elif name.partition("/")[0] not in components:
            assert data == before[name], name
        else:
            assert header(out / name) == header(base / name)


@pytest.mark.parametrize(
    ("kind", "components", "shards", "variant", "dtype"),
    [
        ("sd", ("unet", "text_encoder"), 2, "fp16", np.float16),
        ("sdxl", ("unet", "text_encoder", "text_encoder_2"), 1, "", np.float32),
        ("sdxl", ("unet", "text_encoder", "text_encoder_2"), 1, "fp16", np.float16),
        ("flux", ("transformer", "text_encoder"), 3, "", ml_dtypes.bfloat16),
    ],
)
def test_kohya_file_lands_in_every_component(
    kind: str, components: tuple[str, ...], shards: int, variant: str, dtype: Any, tmp_path: Path
) -> None:
    """Single files, shards and variants keep their names; other components are copied."""
    base = save_pipeline(tmp_path / "base", kind, shards=shards, variant=variant, dtype=dtype)
    tensors = tensors_of(base)
    lora = jaxmix.load(kohya(tmp_path / "x.safetensors", tensors, *components), base=base)
    merged = merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", *components)
    assert merged.verified is not None and merged.verified.ok and not merged.left_out
    assert {name.partition(".")[0] for name in merged.changed} == set(components)
    assert {name.partition("/")[0] for name in merged.shards} == {
        name.partition(".")[0] for name in tensors
    }
    assert verify_merge(base, lora, tmp_path / "out").ok
    assert not verify_merge(base, 0.5 * lora, tmp_path / "out").ok
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(
    ("kind", "prefixes"),
    [
        ("sdxl", {"unet": "unet.", "text_encoder_2": "text_encoder_2."}),
        ("sdxl", {"unet": "diffusion_model.", "text_encoder": "text_encoder."}),
        ("sdxl", {"unet": "diffusion_model."}),
        ("sd", {"unet": ""}),
        ("flux", {"transformer": "unet."}),
        ("flux", {"transformer": "model.diffusion_model.", "text_encoder_2": "text_encoder_2."}),
        ("flux", {"text_encoder_2": "text_encoders.t5xxl.transformer."}),
        ("wan", {"transformer_2": "transformer_2."}),
        ("wan", {"transformer": "transformer.", "transformer_2": "transformer_2."}),
    ],
)
def test_dotted_file(kind: str, prefixes: dict[str, str], has_base: bool, tmp_path: Path) -> None:
    """Components by their own names and those of ComfyUI; without a prefix, by the modules."""
    base = save_pipeline(tmp_path / "base", kind)
    file = dotted(tmp_path / "x.safetensors", tensors_of(base), **prefixes)
    if kind == "wan" and len(prefixes) == 1 and not has_base:
        pytest.skip("the names without the part fit both transformers")
    lora = jaxmix.load(file, **({"base": base} if has_base else {}))
    merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", *prefixes, alpha=False)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("component", [None, "transformer", "transformer_2"])
def test_one_of_two_transformers(prefix: str, component: str | None, tmp_path: Path) -> None:
    """The first by default, as in diffusers; `part=` names the other."""
    base = save_pipeline(tmp_path / "base", "wan")
    tensors = tensors_of(base)
    file = dotted(tmp_path / "x.safetensors", tensors, transformer=prefix)
    lora = jaxmix.load(file, base=base, **({"part": component} if component else {}))
    merge_checkpoint(base, lora, tmp_path / "out")
    # The same factors fit both transformers.
    right = merged_by_hand(tensors, "transformer", alpha=False)
    found = tensors_of(tmp_path / "out")
    chosen = component or "transformer"
    for module in attention(tensors, "transformer"):
        first, own = f"transformer.{module}.weight", f"{chosen}.{module}.weight"
        effect = right[first] - tensors[first]
        assert np.allclose(found[own], tensors[own] + effect, rtol=1e-5, atol=1e-5)
    changed = {name for name, tensor in tensors.items() if (found[name] != tensor).any()}
    assert {name.partition(".")[0] for name in changed} == {chosen}


def test_kohya_file_for_the_second_transformer(tmp_path: Path) -> None:
    """Keys with underscores, too; a mix of one file for each transformer."""
    base = save_pipeline(tmp_path / "base", "wan")
    file = kohya(tmp_path / "x.safetensors", tensors_of(base), "transformer")
    parts = [jaxmix.load(file, part, base=base, part=part) for part in ("transformer_2", "unet")]
    assert all(site.startswith("transformer_2.blocks.0.") for site in parts[0].parts[0].sites)
    assert all(site.startswith("transformer.blocks.0.") for site in parts[1].parts[0].sites)
    merged = merge_checkpoint(base, parts, tmp_path / "out", verify=True)
    assert {name.partition(".")[0] for name in merged.changed} == {"transformer", "transformer_2"}


def peft_folder(folder: Path, tensors: dict[str, np.ndarray], component: str) -> Path:
    """A folder of PEFT, whose names have no component."""
    own = factors(tensors, component, lambda name: name, PEFT, alpha=False)
    return save_adapter(folder, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}, own)


@pytest.mark.parametrize(
    ("kind", "component", "part"),
    [
        ("sdxl", "unet", None),
        ("sdxl", "text_encoder_2", "text_encoder_2"),
        ("flux", "text_encoder_2", None),
        ("wan", "transformer", "transformer"),
    ],
)
def test_peft_folder(kind: str, component: str, part: str | None, tmp_path: Path) -> None:
    """A PEFT folder lands in the component that has its modules, or that `part=` names."""
    base = save_pipeline(tmp_path / "base", kind)
    folder = peft_folder(tmp_path / "peft", tensors_of(base), component)
    lora = jaxmix.load(folder, base=base, **({"part": part} if part else {}))
    merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", component, alpha=False)


def test_sites_that_fit_several_components(tmp_path: Path) -> None:
    """Nothing is guessed: the error lists the sites, and how to choose."""
    base = save_pipeline(tmp_path / "base", "wan")
    lora = jaxmix.load(peft_folder(tmp_path / "peft", tensors_of(base), "transformer"))
    with pytest.raises(LayoutError) as refused:
        merge_checkpoint(base, lora, tmp_path / "out")
    text = str(refused.value)
    start = f"{base}: sites that do not belong to exactly one component of the pipeline:"
    line = "\n  peft: blocks.0.attn1.to_q: transformer and transformer_2 have such modules\n"
    assert text.startswith(f"{start}\n  peft: blocks.0.") and line in text
    assert text.endswith(
        "Its components with weights are transformer, transformer_2. Name the one for which an "
        "adapter was trained: jaxmix.load(…, base=…, part='transformer')."
    )


def test_sites_of_no_component(tmp_path: Path) -> None:
    """Absent components and unknown modules are listed together."""
    base = save_pipeline(tmp_path / "base", "sd")
    sdxl = tensors_of(save_pipeline(tmp_path / "sdxl", "sdxl"))
    file = dotted(tmp_path / "x.safetensors", sdxl, unet="unet.", text_encoder_2="text_encoder_2.")
    save_file(factors(sdxl, "vae", lambda n: f"nothing.{n}", PEFT), tmp_path / "y.safetensors")
    with pytest.raises(LayoutError) as refused:
        merge_checkpoint(base, jaxmix.load(file), tmp_path / "out")
    line = "\n  x: text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj: the pipeline has no"
    assert f"{line} text_encoder_2" in str(refused.value)
    with pytest.raises(LayoutError, match=r"y: nothing\.\S+: no component has such a module"):
        merge_checkpoint(base, jaxmix.load(tmp_path / "y.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_misfits_of_several_components(tmp_path: Path) -> None:
    """One error names each component whose weights do not fit."""
    base = save_pipeline(tmp_path / "base", "sdxl")
    tensors = tensors_of(base)
    file = dotted(tmp_path / "x.safetensors", tensors, unet="unet.", text_encoder="text_encoder.")
    wrong = {name: x[:-1] if "lora_B" in name else x for name, x in load_file(file).items()}
    save_file(wrong, file)
    with pytest.raises(ShapeError) as refused:
        merge_checkpoint(base, jaxmix.load(file, base=base), tmp_path / "out")
    lines = str(refused.value).splitlines()
    assert {line.partition(":")[0] for line in lines} >= {"unet", "text_encoder"}


def test_resuming(tmp_path: Path) -> None:
    """An interrupted merge into a pipeline continues; another mix is refused."""
    base = save_pipeline(tmp_path / "base", "sdxl", shards=2)
    file = kohya(tmp_path / "x.safetensors", tensors_of(base), "unet", "text_encoder")
    lora, out = jaxmix.load(file, base=base), tmp_path / "out"
    last = "diffusion_pytorch_model-00002-of-00002.safetensors"  # of the UNet
    with breaking(tmp_path / "out.partial", Stop(), last), pytest.raises(Stop):
        merge_checkpoint(base, lora, out)
    with pytest.raises(CheckpointError, match="Different: their strengths"):
        merge_checkpoint(base, 0.5 * lora, out, resume=True)
    with pytest.raises(CheckpointError, match=r"of 8 shards of this merge, which was interrupted"):
        merge_checkpoint(base, lora, out)
    merged = merge_checkpoint(base, lora, out, resume=True, verify=True)
    assert 0 < merged.resumed < 8
    assert_merged(base, out, "unet", "text_encoder")


def test_other_files(tmp_path: Path) -> None:
    """Stale weights of changed components are left out; unchanged components are copied whole."""
    base = save_pipeline(tmp_path / "base", "sdxl")
    for component in ("unet", "vae"):
        file = base / component / "diffusion_pytorch_model.safetensors"
        save_weights(file.parent, load_file(file), file.name, variant="fp16")
        save_weights(file.parent, load_file(file), file.name, shards=2, variant="bf16")
        (file.parent / "diffusion_flax_model.msgpack").write_bytes(b"x")
    save_file({"a": np.ones(2)}, base / "sd_xl_base_1.0.safetensors")
    (base / "safety_checker").mkdir()
    (base / "safety_checker/pytorch_model.bin").write_bytes(b"x")
    (base / ".hidden").write_text("x")
    lora = jaxmix.load(kohya(tmp_path / "x.safetensors", tensors_of(base), "unet"), base=base)
    merged = merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    files, before = contents(tmp_path / "out"), contents(base)
    left_out = dict(line.split(": ", 1) for line in merged.left_out)
    assert before.keys() - files.keys() == left_out.keys() | {".hidden"}
    stale = "weights that are still the base's"
    assert left_out == {
        "sd_xl_base_1.0.safetensors": "weights at the top of a pipeline, which none of its "
        "components uses",
        **{
            f"unet/{name}": stale
            for name in (
                "diffusion_flax_model.msgpack",
                "diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.bf16-00002-of-00002.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
                "diffusion_pytorch_model.safetensors.index.bf16.json",
            )
        },
    }
    for name, data in files.items():
        assert name == "unet/diffusion_pytorch_model.safetensors" or data == before[name]
    assert "vae/diffusion_pytorch_model.safetensors.index.bf16.json" in files
    assert "safety_checker/pytorch_model.bin" in files


def test_pipeline_in_the_hub_cache(tmp_path: Path) -> None:
    """Files that are links into the cache are copied, in components too."""
    blobs = tmp_path / "models--owner--name" / "blobs"
    base = tmp_path / "models--owner--name" / "snapshots" / "0123"
    save_pipeline(base, "sd")
    blobs.mkdir()
    for number, path in enumerate(path for path in base.rglob("*") if path.is_file()):
        shutil.move(path, blobs / str(number))
        path.symlink_to(blobs / str(number))
    lora = jaxmix.load(kohya(tmp_path / "x.safetensors", tensors_of(base), "unet"), base=base)
    merged = merge_checkpoint(base, lora, tmp_path / "out")
    assert not merged.left_out
    assert_merged(base, tmp_path / "out", "unet")


def test_replacing_a_pipeline(tmp_path: Path) -> None:
    """`force` replaces a pipeline that was sharded otherwise; other files are refused."""
    base = save_pipeline(tmp_path / "base", "sd")
    out = save_pipeline(tmp_path / "out", "sd", shards=3)
    lora = jaxmix.load(kohya(tmp_path / "x.safetensors", tensors_of(base), "unet"), base=base)
    with pytest.raises(CheckpointError, match=r"exists\. Choose another folder"):
        merge_checkpoint(base, lora, out)
    (out / "unet" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"also holds other files:\n  unet/notes.txt\nMove"):
        merge_checkpoint(base, lora, out, force=True)
    (out / "unet" / "notes.txt").unlink()
    merge_checkpoint(base, lora, out, force=True)
    assert_merged(base, out, "unet")


@pytest.mark.parametrize(("shards", "variant"), [(1, ""), (2, ""), (1, "fp16"), (2, "fp16")])
def test_component_alone(shards: int, variant: str, tmp_path: Path) -> None:
    """A component's folder is a checkpoint like one of transformers."""
    base = save_pipeline(tmp_path / "base", "sd", shards=shards, variant=variant)
    tensors = tensors_of(base)
    file = kohya(tmp_path / "x.safetensors", tensors, "unet", "text_encoder")
    lora = jaxmix.load(file, base=base / "unet", part="lora_unet")
    merged = merge_checkpoint(base / "unet", lora, tmp_path / "unet", verify=True)
    assert contents(tmp_path / "unet").keys() == contents(base / "unet").keys()
    right = merged_by_hand(tensors, "unet")
    for name, tensor in load_file_all(tmp_path / "unet").items():
        assert np.allclose(tensor, right[f"unet.{name}"], rtol=1e-5, atol=1e-5)
    assert len(merged.changed) == len(attention(tensors, "unet"))
    assert verify_merge(base / "unet", lora, tmp_path / "unet").ok


def load_file_all(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder."""
    return {n: x for file in folder.glob("*.safetensors") for n, x in load_file(file).items()}


def test_dequantized_component(tmp_path: Path) -> None:
    """fp8 weights of a component are read and written in bfloat16; its index keeps its name."""
    base = save_pipeline(tmp_path / "base", "sd", shards=2, dtype=np.float32)
    tensors = tensors_of(base)
    file = kohya(tmp_path / "x.safetensors", tensors, "unet")
    for shard in (base / "unet").glob("*.safetensors"):
        fp8 = ml_dtypes.float8_e4m3fn
        own = {
            name: x.astype(fp8) if name.endswith("to_q.weight") else x
            for name, x in load_file(shard).items()
        }
        save_file(own, shard, metadata={"format": "pt"})
    lora = jaxmix.load(file, base=base)
    with pytest.raises(LayoutError, match=r"^unet: .*adapters can't be merged into these tensors"):
        merge_checkpoint(base, lora, tmp_path / "out")
    merged = merge_checkpoint(base, lora, tmp_path / "out", dequantize=True, verify=True)
    assert merged.dequantized > 0
    found = tensors_of(tmp_path / "out")
    name = next(name for name in merged.changed if name.endswith("to_q.weight"))
    before = tensors[name].astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    effect = merged_by_hand(tensors, "unet")[name] - tensors[name]
    assert found[name].dtype == ml_dtypes.bfloat16
    assert np.allclose(found[name].astype(np.float32), before + effect, rtol=1e-2, atol=1e-2)
    index = tmp_path / "out/unet/diffusion_pytorch_model.safetensors.index.json"
    own = {name.removeprefix("unet.") for name in found if name.startswith("unet.")}
    assert json.loads(index.read_text())["weight_map"].keys() == own
