"""Errors of `merge_checkpoint` before it writes anything."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix.converters.files import output
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import AdapterError, CheckpointError, LayoutError, ShapeError
from jaxmix.families import LoRA, SHiRA

from ...messages import full_text
from ..bases import Adapters, contents, load, save_base


def _lora(out: int = 8, width: int = 6) -> LoRA:
    return LoRA(jnp.ones((1, width)), jnp.ones((out, 1)), 1.0)


def test_missing_sites_and_misfits(base: Path, tmp_path: Path) -> None:
    """All sites are listed, with the messages of `compose`, and nothing is written."""
    sites = [f"model.layers.{i}.{name}" for i in range(2) for name in ("k_proj", "q_proj")]
    params = {name: array for name, array in load(base).items() if array.dtype == np.float32}
    misfit = SHiRA(jnp.ones(1), jnp.array([[9], [0]]))
    for updates, kind in [
        (dict.fromkeys(sites, _lora()), LayoutError),
        (dict.fromkeys(sites[1::2], _lora(9, 5)), ShapeError),
        ({sites[1]: misfit}, ShapeError),
    ]:
        adapter = jaxmix.Adapter(updates)
        with pytest.raises(kind) as expected:
            jaxmix.compose(params, adapter)
        with pytest.raises(kind) as caught:
            merge_checkpoint(base, adapter, tmp_path / "out")
        # Both errors list the names under which sites were looked up.
        names = " No name map matches all of them to leaves."
        text = str(caught.value).partition("\nNames were also compared")[0]
        assert text == str(expected.value).removesuffix(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, np.int8])
def test_quantized_tensors(dtype: Any, tmp_path: Path) -> None:
    """Those that adapters touch are listed."""
    name = "model.packed.weight"
    base = save_base(tmp_path / "base", extra={name: np.ones((3, 4), dtype)})
    stored = {np.int8: "I8"}.get(dtype, "F8_E4M3")
    advice = "dequantize=True reads awq," if dtype == np.int8 else "Use dequantize=True to write"
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, jaxmix.Adapter({"model.packed": _lora(3, 4)}), tmp_path / "out")
    assert f"{name} in model.safetensors: {stored}\n{advice}" in str(caught.value)
    assert "expected dtypes F64, F32, F16, BF16" in str(caught.value)


def test_invalid_mixes(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The messages are those of `mix`."""
    lora: Any = jaxmix.load(adapters["lora"])
    with pytest.raises(
        AdapterError,
        match=full_text(
            "two adapters of a mix have the name 'lora'. Give each its "
            "own: jaxmix.load(…, name='other') or "
            "adapter.renamed('other')."
        ),
    ):
        merge_checkpoint(base, [lora, lora], tmp_path / "out")
    path: Any = Path("lora")
    with pytest.raises(
        AdapterError,
        match=full_text(
            f"mix got {type(path).__name__} {path!r}, expected adapters and mixes. Read one with "
            "jaxmix.load(path)."
        ),
    ):
        merge_checkpoint(base, [path], tmp_path / "out")


def _damage(name: str, work: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: work(folder / name)


def _escape(index: Path) -> None:
    contents = json.loads(index.read_text())
    contents["weight_map"]["lm_head.weight"] = "../other/model.safetensors"
    index.write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            _damage("model-00002-of-00003.safetensors", Path.unlink),
            "/model-00002-of-00003.safetensors is missing; found README.md, config.json, "
            "generation_config.json, model-00001-of-00003.safetensors, "
            "model-00003-of-00003.safetensors, model.safetensors.index.json, templates, "
            "tokenizer.json …. Download the complete folder again.",
        ),
        (
            _damage("model-00002-of-00003.safetensors", lambda file: os.truncate(file, 200)),
            "/model-00002-of-00003.safetensors is not a complete safetensors file: it ends after "
            "200 of 304 bytes. Was the download interrupted? Download or save it again.",
        ),
        (
            _damage("model.safetensors.index.json", _escape),
            "/model.safetensors.index.json: files outside its folder:\n  lm_head.weight: "
            "../other/model.safetensors\nExpected names of files next to it. Do not trust this "
            "checkpoint.",
        ),
        (
            _damage("model.safetensors.index.json", Path.unlink),
            " has neither model.safetensors nor model.safetensors.index.json, nor diffusers' "
            "diffusion_pytorch_model.safetensors; found README.md, config.json, "
            "generation_config.json, model-00001-of-00003.safetensors, "
            "model-00002-of-00003.safetensors, model-00003-of-00003.safetensors, templates, "
            "tokenizer.json …. Pass a folder that transformers' save_pretrained wrote.",
        ),
        (
            _damage("config.json", lambda file: file.write_text("[")),
            "/config.json is not JSON: Expecting value: line 1 column 2 (char 1). Save or download "
            "it again.",
        ),
    ],
)
def test_damaged_bases(
    damage: Callable[[Path], object], text: str, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Each is refused before anything is written."""
    damage(sharded)
    with pytest.raises(CheckpointError, match=full_text(f"{sharded}{text}")):
        merge_checkpoint(sharded, jaxmix.load(adapters["embedding"]), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_invalid_bases(adapters: Adapters, tmp_path: Path) -> None:
    """A missing folder, and a file of another kind; test_base_hub covers hub ids."""
    (tmp_path / "file").write_text("x")
    for name, description in (
        (tmp_path / "none", "does not exist, expected a Hugging Face folder with safetensors"),
        (
            tmp_path / "file",
            "is a file, expected a Hugging Face folder with safetensors, a safetensors file",
        ),
    ):
        message = full_text(
            f"{name} {description}, or the id of a repository on the hub, 'owner/name'."
        )
        with pytest.raises(CheckpointError, match=message):
            merge_checkpoint(name, jaxmix.load(adapters["lora"]), tmp_path / "out")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("base", "the output {0}/base is the input {0}/base. Choose a separate folder."),
        (
            "base/sub/out",
            "the folder for the unfinished output {0}/base/sub/out.partial is in the input "
            "{0}/base. Choose another name for the output.",
        ),
        (
            "link/out",
            "the folder for the unfinished output {0}/base/out.partial is in the input {0}/base. "
            "Choose another name for the output.",
        ),
        (".", "the output {0} contains the input {0}/base. Choose a separate folder."),
        ("file", "the output {0}/file is a file. Choose the path of a folder."),
        (
            "file/out",
            "the output {0}/file/out could not be written: [Errno 20] Not a directory: "
            "'{0}/file/out.partial'. What was written is deleted, and nothing else has changed.",
        ),
    ],
)
def test_impossible_outputs(
    out: str, message: str, force: bool, base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """They are refused with and without `force`, and nothing changes."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(base)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=full_text(message.format(tmp_path))):
        lora = jaxmix.load(adapters["lora"])
        merge_checkpoint(base, lora, tmp_path / out, force=force)
    assert contents(tmp_path) == before


def test_existing_output(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """It is replaced with force if it is a checkpoint; an empty folder is replaced anyway."""
    out, lora = tmp_path / "out", jaxmix.load(adapters["lora"])
    out.mkdir()
    message = full_text(
        f"the output {out} exists. Choose another folder, or use force=True to replace it once the "
        "new one is complete."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(base, lora, out)
    (out / "thesis.txt").write_text("x")
    message = full_text(
        f"the output {out} exists and is not a checkpoint: it has none of config.json, "
        "model_index.json, model.safetensors, model.safetensors.index.json. Choose another folder, "
        "or empty this one."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(base, lora, out, force=True)
    (out / "thesis.txt").unlink()
    merge_checkpoint(base, lora, out, force=True)
    first = contents(out)
    merge_checkpoint(base, [], out, force=True)
    assert contents(out) == contents(base) != first
    assert not list(tmp_path.glob("out?*"))


def test_link_to_an_output(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Its target is replaced, not the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out", force=True)
    assert (tmp_path / "out").is_symlink() and contents(tmp_path / "real").keys() == contents(
        base
    ).keys()


def test_too_little_disk_space(
    base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the work."""

    class Usage:
        free = 99

    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(
        CheckpointError,
        match=(
            rf"\Athe output {re.escape(str(tmp_path))}/out needs [\d,]+ bytes, and "
            rf"{re.escape(str(tmp_path))} has 99 bytes free\. Free some space, or choose another "
            r"disk\.\Z"
        ),
    ):
        merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "out")
