"""Weights next to an adapter: read as replaced leaves, listed in one error, or skipped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.common.extra_weights import extra_weights
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import LoRA, Replace, Together

from ..formats import files
from ..peft.folders import SITE, refused, save

NEW = np.arange(12, dtype=np.float32).reshape(3, 4)
PREFIX = "base_model.model."


def beside(folder: Path, name: str, tensors: dict[str, Any]) -> Path:
    """An adapter's folder with one file more."""
    if not (folder / "adapter_config.json").exists():
        save(folder)
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        (folder / name).write_bytes(b"not looked at")
    return folder


@pytest.mark.parametrize("prefix", ["", PREFIX, 2 * PREFIX])
@pytest.mark.parametrize("name", ["new_embeddings.safetensors", "vit.safetensors"])
def test_saved_modules_are_replaced_leaves(name: str, prefix: str, tmp_path: Path) -> None:
    """Like modules_to_save: the base's at strength 0, the file's at 1."""
    tensors = {f"{prefix}embed.weight": NEW, f"{prefix}norm.bias": NEW[0]}
    adapter: Any = jaxmix.load(beside(tmp_path, name, tensors))
    assert set(adapter.sites) == {SITE, "embed", "norm"}
    params = {
        "embed.weight": np.ones((3, 4), np.float32),
        "norm.bias": np.ones(4, np.float32),
        "norm.weight": np.ones(4, np.float32),
        f"{SITE}.weight": np.ones((6, 4), np.float32),
    }
    out: Any = jaxmix.compose(params, 0.5 * adapter)
    np.testing.assert_array_equal(out["embed.weight"], (NEW + 1) / 2)
    np.testing.assert_array_equal(out["norm.bias"], (NEW[0] + 1) / 2)
    assert isinstance(adapter.updates["embed"], Replace)


def test_replaced_leaf_below_factors(tmp_path: Path) -> None:
    """The leaf replaces the base's, and LoRA acts on top of it."""
    weight = np.ones((6, 4), np.float32)
    adapter: Any = jaxmix.load(beside(tmp_path, "x.safetensors", {f"{SITE}.weight": weight}))
    update: Any = adapter.updates[SITE]
    assert isinstance(update, Together) and [type(p) for p in update.parts] == [Replace, LoRA]


UNREAD = [
    "non_lora_trainables.bin",
    "mm_projector.bin",
    "value_head.bin",
    "pytorch_model.bin",
    "model.pth",
    "state.pt",
    "last.ckpt",
    "heads.npz",
    "embeddings.npy",
    "x.h5",
    "x.msgpack",
    "x.gguf",
    "x.pkl",
    "X.BIN",
]


@pytest.mark.parametrize("name", UNREAD)
def test_unread_weights(name: str, tmp_path: Path) -> None:
    """Weights with any file extension are refused; with `ignore` the adapter loads without them."""
    folder = beside(tmp_path / "style", name, {})
    for path in (folder, folder / "adapter_model.safetensors"):
        message = refused(CheckpointError, path)
        assert message.startswith(
            f"{folder} has weights next to the adapter that are not read:\n  "
        )
        assert f"\n  {name}: " in message
        assert message.endswith(
            f"They may have been trained with it, and would be missing from the "
            f"result. To leave them out: ignore={name!r}, or a glob."
        )
        for ignore in (name, [name], ("other", f"*{Path(name).suffix}")):
            assert jaxmix.load(path, ignore=ignore).sites == (SITE,)
        assert f"\n  {name}: " in refused(CheckpointError, path, ignore="other*")


def test_all_files_are_listed_with_reasons(tmp_path: Path) -> None:
    """One error lists all files."""
    lora = {f"{PREFIX}{SITE}.lora_A.weight": NEW}
    beside(tmp_path, "value_head.safetensors", {"v_head.summary.weight": NEW})
    beside(tmp_path, "other.safetensors", lora)
    beside(tmp_path, "count.safetensors", {"steps.weight": np.ones(1, np.int64)})
    beside(tmp_path, "many.safetensors", {f"{i}": NEW for i in range(4)})
    beside(tmp_path, "model.safetensors", {"embed.weight": NEW})
    beside(tmp_path, "a.bin", {})
    beside(tmp_path, "a.gguf", {})
    message = refused(CheckpointError, tmp_path)
    for line in (
        (
            "a.bin: saved by torch; only a safetensors file with the weights of whole "
            "modules is read"
        ),
        "a.gguf: a .gguf file, which no reader reads",
        "count.safetensors: steps.weight is not a module's weight or bias",
        "many.safetensors: 0 is not a module's weight or bias; 1 is not a module's weight or bias; "
        "2 is not a module's weight or bias …",
        "model.safetensors: named like a whole model, but the folder has no config.json",
        f"other.safetensors: {next(iter(lora))} is not a module's weight or bias",
        "value_head.safetensors: v_head.summary.weight belongs to a head that TRL "
        "adds, which the base does not have",
    ):
        assert f"\n  {line}\n" in message
    assert jaxmix.load(tmp_path, ignore="*").sites == (SITE,)


def test_modules_that_the_base_does_not_have(tmp_path: Path) -> None:
    """Refused if the base has the adapter's names; a tree with other names proves nothing."""
    beside(tmp_path, "x.safetensors", {"projector.0.weight": NEW, "model.embed.weight": NEW})
    message = refused(CheckpointError, tmp_path, base=[SITE, "embed", "tower.0"])
    assert "\n  x.safetensors: a list of module names has no module projector.0\n" in message
    sites = {SITE, "projector.0", "model.embed"}
    assert set(jaxmix.load(tmp_path, base=[SITE, "embed", "lm.projector.0"]).sites) == sites
    assert set(jaxmix.load(tmp_path, base=["decoder"]).sites) == sites


def test_head_of_a_tied_base(tmp_path: Path) -> None:
    """The base has no leaf for it, but it is read: merging reports what to do."""
    beside(tmp_path, "head.safetensors", {"lm_head.weight": NEW})
    assert jaxmix.load(tmp_path, base=[SITE, "embed"]).sites == (SITE, "lm_head")


def test_duplicate_leaf(tmp_path: Path) -> None:
    """Equal duplicates are accepted; others are ambiguous."""
    beside(tmp_path, "x.safetensors", {"embed.weight": NEW})
    beside(tmp_path, "y.safetensors", {f"{PREFIX}embed.weight": NEW})
    assert set(jaxmix.load(tmp_path).sites) == {SITE, "embed"}
    beside(tmp_path, "y.safetensors", {"embed.weight": NEW + 1})
    message = refused(CheckpointError, tmp_path)
    assert (
        "\n  y.safetensors: embed.weight is also in another file, with different numbers\n"
    ) in message


TRAINER = [
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_1.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_3.pth",
    "random_states_0.pkl",
    "training_args.bin",
    "pytorch_model_fsdp.bin",
    "mp_rank_00_model_states.pt",
    "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "trainer_state.json",
    "tokenizer.model",
    "adapter_model.bin",
    "adapter_model.gguf",
    ".cache.bin",
]


def test_trainer_checkpoint(tmp_path: Path) -> None:
    """A trainer's state, folders and a copy of the adapter are not part of the model."""
    for name in TRAINER:
        beside(tmp_path / "checkpoint-100", name, {})
    for inner in ("global_step100", "reference", "pytorch_model_fsdp_0"):
        (tmp_path / "checkpoint-100" / inner).mkdir()
        (tmp_path / "checkpoint-100" / inner / "x.pt").write_bytes(b"")
    assert jaxmix.load(tmp_path / "checkpoint-100").sites == (SITE,)
    assert jaxmix.load(tmp_path, subfolder="checkpoint-100").name == "checkpoint-100"


def test_model_with_an_adapter(tmp_path: Path) -> None:
    """With config.json the folder's weights are the base, as in transformers."""
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        beside(tmp_path, name, {"embed.weight": NEW})
    (tmp_path / "config.json").write_text("{}")
    assert jaxmix.load(tmp_path).sites == (SITE,)
    beside(tmp_path, "value_head.bin", {})
    assert "\n  value_head.bin: " in refused(CheckpointError, tmp_path)


@pytest.mark.parametrize("ignore", [3, [3], [""], "", None, {"a": 1}])
def test_ignore(ignore: Any, tmp_path: Path) -> None:
    """`ignore` must be a name, a glob or a list of them."""
    assert refused(UnsupportedError, save(tmp_path), ignore=ignore) == (
        f"ignore is {ignore!r}, expected the name of a file next to the adapter, a "
        f"glob such as '*.bin', or a list of them."
    )


def test_parts_of_a_recipe(tmp_path: Path) -> None:
    """Each has its own files; `ignore` applies to all, or is given in the part."""
    beside(tmp_path / "style", "x.bin", {})
    part = {"source": "style"}
    for i, fields in enumerate([{}, {"ignore": "x.*"}]):
        recipe = {"format": "jaxmix", "version": 1, "parts": [{**part, **fields}]}
        (tmp_path / f"{i}.json").write_text(json.dumps(recipe))
    message = refused(CheckpointError, tmp_path / "0.json")
    assert f"part 1, style: {tmp_path / 'style'} has weights next to the adapter" in message
    assert jaxmix.load(tmp_path / "0.json", ignore="x.bin").parts[0].sites == (SITE,)
    assert jaxmix.load(tmp_path / "1.json").parts[0].sites == (SITE,)


def test_other_formats(tmp_path: Path) -> None:
    """A folder of mlx-lm with its earlier states; for a single file its folder is not read."""
    names = ["adapters.safetensors", "0000100_adapters.safetensors", "x.safetensors"]
    from jaxmix.converters.adapters.mlx import is_mlx_file

    assert extra_weights(names, is_mlx_file) == ("x.safetensors",)
    for name in ("a.safetensors", "b.safetensors"):
        files.save(tmp_path / name, files.kohya("lora"))
    assert jaxmix.load(tmp_path / "a.safetensors", base=list(files.BASE)).sites == ("proj",)


def test_unlistable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter loads from a folder that can't be listed."""
    folder = save(tmp_path)
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError()))
    assert jaxmix.load(folder).sites == (SITE,)
