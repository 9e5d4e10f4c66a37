"""The files of merged pipelines and components: side files, links, shards, packed weights."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError, LayoutError

from ...messages import full_text
from ..bases import contents
from ..pipelines import (
    assert_merged,
    attention,
    kohya,
    merged_by_hand,
    save_pipeline,
    save_weights,
    tensors_of,
)


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
    for number, path in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
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
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out exists. Choose another folder, or use "
            "force=True to replace it once the new one is complete."
        ),
    ):
        merge_checkpoint(base, lora, out)
    (out / "unet" / "notes.txt").write_text("mine")
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out can't be replaced, since it also holds "
            "other files:\n"
            "  unet/notes.txt\n"
            "Move these files, or choose another folder."
        ),
    ):
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
    packed: list[str] = []
    for shard in (base / "unet").glob("*.safetensors"):
        fp8 = ml_dtypes.float8_e4m3fn
        own = {
            name: x.astype(fp8) if name.endswith("to_q.weight") else x
            for name, x in load_file(shard).items()
        }
        save_file(own, shard, metadata={"format": "pt"})
        packed += [f"\n  {n} in {shard.name}: F8_E4M3" for n in own if n.endswith("to_q.weight")]
    lora = jaxmix.load(file, base=base)
    message = full_text(
        f"unet: {base}/unet: adapters can't be merged into these tensors, expected dtypes F64, "
        f"F32, F16, BF16:{''.join(sorted(packed))}\nUse dequantize=True to write packed weights in "
        "bfloat16 and merge into them."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, lora, tmp_path / "out")
    merged = merge_checkpoint(base, lora, tmp_path / "out", dequantize=True, verify=True)
    assert merged.dequantized > 0
    written = tensors_of(tmp_path / "out")
    name = next(name for name in merged.changed if name.endswith("to_q.weight"))
    before = tensors[name].astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    effect = merged_by_hand(tensors, "unet")[name] - tensors[name]
    assert written[name].dtype == ml_dtypes.bfloat16
    assert np.allclose(written[name].astype(np.float32), before + effect, rtol=1e-2, atol=1e-2)
    index = tmp_path / "out/unet/diffusion_pytorch_model.safetensors.index.json"
    own = {name.removeprefix("unet.") for name in written if name.startswith("unet.")}
    assert json.loads(index.read_text())["weight_map"].keys() == own
