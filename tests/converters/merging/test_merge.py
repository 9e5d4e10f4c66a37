"""`merge_checkpoint`: its output, byte for byte."""

import errno
import json
import os
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, pipeline, recipe, tensor_io
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA
from jaxmix.placement.layout import LAYOUTS, libraries

from ...messages import full_text
from ..bases import Adapters, contents, header, load, mixed, save_base


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_output_is_base_plus_mix(
    dtype: str, shards: int, adapters: Adapters, tmp_path: Path
) -> None:
    """Changed tensors equal those of `compose`; all else is copied byte for byte."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    base, mix = save_base(tmp_path / "base", shards=shards, dtype=kind), mixed(adapters)
    before = contents(base)
    merged = merge_checkpoint(base, mix, tmp_path / "out")
    params, loaded, files = load(base), load(tmp_path / "out"), contents(tmp_path / "out")
    with jax.enable_x64(True) if dtype == "float64" else nullcontext():
        floats = {name: array for name, array in params.items() if array.dtype == kind}
        expected = jaxmix.compose(floats, mix)
    assert set(merged.changed) == {name for name in params if "_proj." in name}
    for name, array in params.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        tensor = np.asarray(expected[name]) if name in merged.changed else array
        assert loaded[name].tobytes() == tensor.tobytes(), name
        assert (name in merged.changed) == (loaded[name].tobytes() != array.tobytes())
    assert files.keys() == before.keys() and contents(base) == before
    for name, data in files.items():
        if name.endswith(".safetensors"):
            assert len(data) == len(before[name])
            assert header(tmp_path / "out" / name) == header(base / name)
        else:
            assert data == before[name], name
    assert merged.size == sum(len(d) for n, d in files.items() if n.endswith(".safetensors"))
    assert (merged.copied, merged.untied, merged.left_out) == (len(params) - 6, None, ())
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "_orig_mod."),
        ("", "module."),
        ("layers.", "layers._fsdp_wrapped_module."),
        ("_proj.", "_proj.module."),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_base_with_wrapper_names(
    old: str, new: str, tied: bool, adapters: Adapters, tmp_path: Path
) -> None:
    """A state dict of a wrapped model: the same numbers under its own names."""
    base, mix = save_base(tmp_path / "base", tied=tied), mixed(adapters)
    merge_checkpoint(base, mix, tmp_path / "clean")
    expected, file = load(tmp_path / "clean"), base / "model.safetensors"
    names = {name: name.replace(old, new) if old else new + name for name in expected}
    save_file({names[name]: tensor for name, tensor in load(base).items()}, file)
    merged = merge_checkpoint(base, mix, tmp_path / "out", verify=True)
    loaded = load(tmp_path / "out")
    assert len(merged.changed) == 6
    assert loaded.keys() == set(names.values())
    assert all(np.array_equal(loaded[names[name]], tensor) for name, tensor in expected.items())


def test_weight_and_bias_in_different_files(sharded: Path) -> None:
    """The test above covers this case: their files differ."""
    where = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    site = "model.layers.0.q_proj"
    assert where[f"{site}.weight"] != where[f"{site}.bias"]


def test_order_matters(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Two adapters that do not commute are merged in both orders."""
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    for i, pair in enumerate([[lora, oft], [oft, lora]]):
        merge_checkpoint(base, pair, tmp_path / f"{i}")
        expected = jaxmix.compose(load(base), pair)
        for name, array in load(tmp_path / f"{i}").items():
            assert array.tobytes() == np.asarray(expected[name]).tobytes()
    name = "model.layers.0.q_proj.weight"
    assert np.abs(load(tmp_path / "0")[name] - load(tmp_path / "1")[name]).max() > 0.01


def test_single_adapter_and_empty_list_are_merged(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """A single one need not be in a list; without adapters the output is the base."""
    merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "one")
    merge_checkpoint(base, [jaxmix.load(adapters["lora"])], tmp_path / "list")
    assert contents(tmp_path / "one") == contents(tmp_path / "list") != contents(base)
    assert merge_checkpoint(base, [], tmp_path / "none").changed == ()
    assert contents(tmp_path / "none") == contents(base)


def test_only_touched_tensors_are_decoded(
    sharded: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of touched sites become arrays, each once; the others may contain any bytes."""
    read: list[str] = []
    plain = tensor_io.read_rows

    def spy(tensor: Any, rows: slice) -> np.ndarray:
        read.append(tensor.name)
        return plain(tensor, rows)

    first = sharded / "model-00001-of-00003.safetensors"
    packed = {"model.packed.weight": np.ones((3, 4), ml_dtypes.float8_e4m3fn)}
    save_file({**load_one(first), **packed}, first)
    index = sharded / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    contents["weight_map"] |= dict.fromkeys(packed, first.name)
    index.write_text(json.dumps(contents))
    for user in (pipeline, recipe):
        monkeypatch.setattr(user, "read_rows", spy)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    assert sorted(read) == sorted(name for name in contents["weight_map"] if "_proj." in name)
    assert header(tmp_path / "out" / first.name) == header(first)


def load_one(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file."""
    from safetensors.numpy import load_file

    return load_file(file)


def test_written_runs_are_freed(
    base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run is computed, no earlier run is in memory, except for those in the queues."""
    plain: Any = recipe.Prepared.compute
    references: list[weakref.ref[np.ndarray]] = []
    kept = 1 if jax.__version_info__ < (0, 9) else 0  # JAX 0.8 itself keeps one argument

    def spy(self: Any, read: np.ndarray, rows: slice) -> recipe.ComputedRows:
        assert sum(reference() is not None for reference in references) <= kept
        array = plain(self, read, rows)
        references.extend((weakref.ref(array.array), weakref.ref(read)))
        return array

    monkeypatch.setattr(recipe.Prepared, "compute", spy)
    monkeypatch.setattr(pipeline, "BOUND", 0)
    merge_checkpoint(base, mixed(adapters), tmp_path / "out")
    assert len(references) == 12


def test_sites_that_share_a_tensor(tmp_path: Path) -> None:
    """A layout that puts q and k into one tensor: both are merged into it."""
    rng = np.random.default_rng(3)
    qk = np.asarray(rng.normal(size=(8, 5)), np.float32)
    (tmp_path / "base").mkdir()
    save_file({"0.qk": qk, "0.v": qk}, tmp_path / "base" / "model.safetensors")
    table = jaxmix.Layout(
        "fused",
        (
            jaxmix.Rule(r"l\.(\d+)\.q", r"\1.qk", index="0:6"),
            jaxmix.Rule(r"l\.(\d+)\.k", r"\1.qk", index="6:8"),
        ),
    )

    def lora(out: int) -> LoRA:
        a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5), (out, 2)))
        return LoRA(a, b, 0.5)

    adapter = jaxmix.Adapter({"l.0.q": lora(6), "l.0.k": lora(2)})
    merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", layout=table)
    expected = jaxmix.compose({"0.qk": qk, "0.v": qk}, adapter, layout=table)
    loaded = load(tmp_path / "out")
    assert loaded["0.qk"].tobytes() == np.asarray(expected["0.qk"]).tobytes()
    assert loaded["0.v"].tobytes() == qk.tobytes() != loaded["0.qk"].tobytes()
    known = ", ".join(map(repr, {**LAYOUTS, **libraries()}))
    message = full_text(
        f"there is no layout 'fusd', expected None, one of {known}, or a jaxmix.Layout with rules "
        "of your own."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(tmp_path / "base", adapter, tmp_path / "other", layout="fusd")


def test_progress(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The count grows, ends at the total, and names the shards in order."""
    reports: list[tuple[int, int, str]] = []
    merged = merge_checkpoint(
        sharded, mixed(adapters), tmp_path / "out", progress=lambda *report: reports.append(report)
    )
    counts = [report[0] for report in reports]
    assert counts == sorted(counts) and counts[-1] == merged.size == reports[0][1]
    assert tuple(dict.fromkeys(report[2] for report in reports)) == merged.shards


@pytest.mark.parametrize("by_the_system", [True, False])
def test_large_tensors_are_processed_in_pieces(
    by_the_system: bool,
    sharded: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With pieces of 7 bytes and runs of a few rows the output is the same.

    Byte for byte where nothing is computed; the arithmetic of a run may round differently.
    """
    merged = merge_checkpoint(sharded, mixed(adapters), tmp_path / "a")
    if not by_the_system:
        # As between disks with different file systems.
        refuse = partial(_refuse, errno.EXDEV)
        monkeypatch.setattr(tensor_io.os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(tensor_io, "CHUNK", 7)
    monkeypatch.setattr(pipeline, "STRIDE", 7)
    monkeypatch.setattr(pipeline, "BOUND", 50)
    monkeypatch.setattr(recipe, "BLOCK", 20)
    sizes: list[int] = []
    plain: Any = recipe.Prepared.compute

    def spy(self: Any, read: np.ndarray, rows: slice) -> recipe.ComputedRows:
        sizes.append(rows.stop - rows.start)
        return plain(self, read, rows)

    monkeypatch.setattr(recipe.Prepared, "compute", spy)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "b")
    uncut, cut = load(tmp_path / "a"), load(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "b").keys()
    for name, array in uncut.items():
        np.testing.assert_allclose(cut[name], array, rtol=1e-5, atol=1e-6)
        assert name in merged.changed or cut[name].tobytes() == array.tobytes()
    assert sorted(sizes) == [2] * 14 + [8] * 2  # each bias is one run


def _refuse(number: int, *_: Any) -> None:
    raise OSError(number, os.strerror(number))


# ---------------------------------------------------------------- side files


def test_files_that_are_left_out(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Hidden files, links out of the folder, copies of the base's weights, and an adapter."""
    before = contents(base)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("mine")
    for name in (".git/config", ".env", "pytorch_model.bin", "onnx/model.onnx", "a.safetensors"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (base / name).write_text("{}")
    (base / "adapter_config.json").write_text("{}")
    (base / "escape").symlink_to(secret / "key")
    (base / "escapes").symlink_to(secret)
    (base / "within").symlink_to("README.md")
    os.mkfifo(base / "pipe")
    merged = merge_checkpoint(base, mixed(adapters), tmp_path / "out")
    files = contents(tmp_path / "out")
    assert files.keys() == before.keys() | {"within"}
    assert files["within"] == before["README.md"] and not (tmp_path / "out/within").is_symlink()
    assert list(merged.left_out) == [
        "a.safetensors: weights that are still the base's",
        "adapter_config.json: an adapter's config",
        "escape: a link that points out of the folder",
        "escapes: a link that points out of the folder",
        "model.safetensors.index.json: weights that are still the base's",
        "pipe: not a regular file",
        "pytorch_model.bin: weights that are still the base's",
        "pytorch_model.bin.index.json: weights that are still the base's",
        "onnx/model.onnx: weights that are still the base's",
    ]


def test_hub_cache(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """All files there are links to blobs, and are read."""
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / "0123abcd"
    for i, name in enumerate(contents(base)):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / "blobs").mkdir(exist_ok=True)
        (base / name).rename(cache / "blobs" / f"{i}")
        (snapshot / name).symlink_to(cache / "blobs" / f"{i}")
    merged = merge_checkpoint(snapshot, mixed(adapters), tmp_path / "out")
    assert merged.left_out == ()
    assert contents(tmp_path / "out").keys() == contents(snapshot).keys()
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_square_conv1d_follows_layers_of_its_name(tmp_path: Path) -> None:
    """GPT-2's ``attn.c_proj`` is (in, out), even if PEFT's file states the opposite.

    Its shape and bias do not decide; ``mlp.c_proj``, which no adapter touches, does.
    """
    rng, d = np.random.default_rng(0), 8

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    base = {"lm_head.weight": drawn(11, d), "transformer.wte.weight": drawn(11, d)}
    for name, shape in {"attn.c_proj": (d, d), "mlp.c_proj": (4 * d, d)}.items():
        base[f"transformer.h.0.{name}.weight"] = drawn(*shape)
        base[f"transformer.h.0.{name}.bias"] = drawn(shape[1])
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    config = {"model_type": "gpt2", "tie_word_embeddings": False}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    a, b, site = drawn(2, d), drawn(d, 2), "transformer.h.0.attn.c_proj"
    adapter = jaxmix.Adapter({site: LoRA(a=jnp.asarray(a), b=jnp.asarray(b), scale=1.0)})
    merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out")
    loaded = load(tmp_path / "out")
    expected = base[f"{site}.weight"] + (b @ a).T
    np.testing.assert_allclose(loaded[f"{site}.weight"], expected, rtol=1e-5, atol=1e-5)
    composed = jaxmix.compose(base, adapter)[f"{site}.weight"]
    assert np.array_equal(loaded[f"{site}.weight"], np.asarray(composed))
