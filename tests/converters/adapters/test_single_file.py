"""A single file in a folder or repository: chosen as diffusers does, or by `filename`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError

from .formats.files import BASE, drawn, kohya, save
from .peft import folders
from .peft.folders import SITE, refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = "pytorch_lora_weights.safetensors"


def diffusers(seed: int = 0) -> dict[str, Any]:
    """A file of diffusers with one module."""
    a, b = drawn(2, 4, seed=seed), drawn(6, 2, seed=seed)
    return {"unet.proj.lora_A.weight": a, "unet.proj.lora_B.weight": b}


@pytest.fixture(params=["folder", "hub"])
def place(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder to fill, and the argument of `load`: its path, or the id of a cached repository."""
    if request.param == "folder":
        (tmp_path / "style").mkdir()
        return tmp_path / "style", str(tmp_path / "style")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--style"
    for folder in ("refs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT, "owner/style"


def test_default_name_of_diffusers(place: tuple[Path, str]) -> None:
    """The file is found among any pages and pictures."""
    folder, text = place
    save(folder / LORA, diffusers())
    (folder / "README.md").write_text("")
    (folder / "image_0.png").write_bytes(b"")
    (folder / "checkpoint-500").mkdir()
    save(folder / "checkpoint-500" / LORA, diffusers(1))
    loaded: Any = jaxmix.load(text)
    assert (loaded.name, loaded.sites) == ("style", ("proj",))
    np.testing.assert_array_equal(loaded.updates["proj"].a, drawn(2, 4))
    in_subfolder: Any = jaxmix.load(text, subfolder="checkpoint-500")
    same: Any = jaxmix.load(text, filename=f"checkpoint-500/{LORA}")
    assert (in_subfolder.name, same.name) == ("checkpoint-500", LORA.removesuffix(".safetensors"))
    for adapter in (in_subfolder, same):
        np.testing.assert_array_equal(adapter.updates["proj"].a, drawn(2, 4, seed=1))


def test_folder_with_one_kohya_file(place: tuple[Path, str]) -> None:
    """Its only safetensors; a trainer's state and a model's weights do not count."""
    folder, text = place
    save(folder / "last.safetensors", kohya("lora"))
    (folder / "optimizer.pt").write_bytes(b"")
    save(folder / "model.safetensors", {"proj.weight": drawn(6, 4)})
    loaded = jaxmix.load(text, base=list(BASE), ignore="model.*")
    assert (loaded.name, loaded.sites) == ("style", ("proj",))
    message = refused(CheckpointError, text, base=list(BASE))
    assert " has weights next to the adapter that are not read:\n  model.safetensors: " in message


def test_several_files(place: tuple[Path, str]) -> None:
    """The user has to choose; all are listed."""
    folder, text = place
    for i in "21":
        save(folder / f"{i}.safetensors", diffusers(int(i)))
    message = refused(CheckpointError, text)
    assert message.endswith(
        " has several files that may be the adapter:\n  1.safetensors\n  "
        "2.safetensors\nSay which one to read: filename='1.safetensors'."
    )
    loaded: Any = jaxmix.load(text, filename="2.safetensors", strength=0.5)
    assert (loaded.name, loaded.strength) == ("2", 0.5)
    assert loaded.source == ("owner/style" if text == "owner/style" else "style") + "/2.safetensors"
    np.testing.assert_array_equal(loaded.updates["proj"].a, drawn(2, 4, seed=2))
    assert jaxmix.load(text, filename="1.safetensors", format="diffusers").name == "1"


def test_filename_in_a_recipe(place: tuple[Path, str], tmp_path: Path) -> None:
    """`filename` is a field of the part."""
    for i in "12":
        save(place[0] / f"{i}.safetensors", diffusers(int(i)))
    part = {"source": place[1].removeprefix(f"{tmp_path}/"), "filename": "2.safetensors"}
    recipe = {"format": "jaxmix", "version": 1, "parts": [part]}
    (tmp_path / "x.json").write_text(json.dumps(recipe))
    update: Any = jaxmix.load(tmp_path / "x.json").parts[0].updates["proj"]
    np.testing.assert_array_equal(update.a, drawn(2, 4, seed=2))


def test_embeddings_next_to_the_default_file(place: tuple[Path, str]) -> None:
    """Pivotal tuning trains tokens too, and they are not ignored."""
    folder, text = place
    save(folder / LORA, diffusers())
    save(folder / "style_emb.safetensors", {"clip_l": drawn(2, 4)})
    message = refused(CheckpointError, text)
    assert "\n  style_emb.safetensors: not one of this adapter's files\n" in message
    assert jaxmix.load(text, ignore="*_emb.safetensors").sites == ("proj",)
    assert jaxmix.load(text, filename=LORA).sites == ("proj",)


def test_file_of_a_peft_folder(place: tuple[Path, str]) -> None:
    """Its config is read; the folder's own file stands for the folder."""
    folder, text = place
    folders.save(folder)
    tensors = folders.keyed(folders.factors(folders.FORMS["lora"]))
    changed = {key: 2 * x for key, x in tensors.items()}
    (folder / "adapter_model_2.safetensors").write_bytes(folders.packed(changed))
    ignored = {"ignore": "adapter_model_2*"}
    first: Any = jaxmix.load(text, filename="adapter_model.safetensors", **ignored)
    assert (first.name, first.sites) == ("style", (SITE,))
    second: Any = jaxmix.load(text, filename="adapter_model_2.safetensors", **ignored)
    np.testing.assert_array_equal(second.updates[SITE].a, 2 * first.updates[SITE].a)
    assert second.updates[SITE].scale == first.updates[SITE].scale != 1


def test_shards_and_extra_weights(place: tuple[Path, str]) -> None:
    """As in a folder, shards are joined and extra weights are read or reported."""
    from .peft.test_weights import INDEX, sharded

    folder, text = place
    sharded(folder)
    assert jaxmix.load(text).sites == jaxmix.load(text, filename=INDEX).sites == (SITE,)
    save(folder / "vit.safetensors", {"vit.weight": drawn(2, 3)})
    assert jaxmix.load(text).sites == (SITE, "vit")
    (folder / "mm_projector.bin").write_bytes(b"")
    assert "\n  mm_projector.bin: saved by torch" in refused(CheckpointError, text)


def test_adapterhub_adapter(place: tuple[Path, str]) -> None:
    """Its config has the name of PEFT's, but is not one."""
    from .test_adapterhub import LORA as CONFIG
    from .test_adapterhub import Q, folder, keyed

    tensors = keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2))
    folder(place[0], tensors, CONFIG)
    for options in ({}, {"filename": "adapter.safetensors"}, {"format": "adapterhub"}):
        loaded: Any = jaxmix.load(place[1], **options)
        assert (loaded.name, loaded.sites) == ("style", (Q,))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a/..", "a/", "."])
def test_filename_outside_the_folder(name: str, place: tuple[Path, str]) -> None:
    """It must be in the folder."""
    assert refused(CheckpointError, place[1], filename=name) == (
        f"filename {name!r} is not a file inside its folder, expected one such as "
        f"'pytorch_lora_weights.safetensors'. Pass its path as the first argument."
    )


def test_missing_filename(place: tuple[Path, str]) -> None:
    """The existing files are listed; on the hub the client reports it."""
    folder, text = place
    save(folder / "a.safetensors", diffusers())
    message = refused(CheckpointError, text, filename="b.safetensors")
    if text == "owner/style":
        assert message.startswith("owner/style on the hub: b.safetensors is not in the local cache")
    else:
        assert message == (
            f"{folder} has no b.safetensors; found a.safetensors. Pass the name of a file in it."
        )
        message = refused(CheckpointError, folder / "a.safetensors", filename="b")
        assert " is a file, which has no file in it.\n" in message


def test_folder_without_an_adapter(place: tuple[Path, str]) -> None:
    """The error names PEFT's files; other files are not candidates."""
    folder, text = place
    (folder / "README.md").write_text("")
    assert "adapter_config.json" in refused(CheckpointError, text)
    folders.save(folder)
    (folder / "adapter_config.json").unlink()
    message = refused(CheckpointError, text)
    assert "has no adapter_config.json" in message or "adapter_config.json is not in the" in message
    (folder / "adapter_model.safetensors").unlink()
    message = refused(CheckpointError, text, format="kohya")
    if text == "owner/style":
        assert message == (
            "owner/style on the hub has no file of weights that may be an adapter. Say which one "
            "to read: filename='…'."
        )
    else:
        assert message.startswith(f"{folder} is not a file, expected a .safetensors")
    refused(UnsupportedError if text == "owner/style" else CheckpointError, text, format="qwix")


def test_single_torch_file(place: tuple[Path, str]) -> None:
    """A file that diffusers writes with `safe_serialization=False` is read."""
    torch = pytest.importorskip("torch")
    folder, text = place
    content = {key: torch.from_numpy(x.copy()) for key, x in diffusers().items()}
    torch.save(content, folder / "pytorch_lora_weights.bin")
    assert jaxmix.load(text).sites == ("proj",)
    folders.save(folder / "peft")
    (folder / "peft" / "adapter_model.safetensors").unlink()
    tensors = folders.keyed(folders.factors(folders.FORMS["lora"]))
    content = {key: torch.from_numpy(x) for key, x in tensors.items()}
    torch.save(content, folder / "peft" / "adapter_model.bin")
    assert jaxmix.load(text, subfolder="peft").sites == (SITE,)


# ------------------------------------------------------------------------------ the hub's own list


def test_file_list_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists extra files: readable ones are downloaded, others reported without that."""
    folders.save(tmp_path)
    save(tmp_path / "vit.safetensors", {"vit.weight": drawn(2, 3)})
    fetched, requested = [], []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        fetched.append(filename)
        if not (tmp_path / filename).exists():
            raise huggingface_hub.errors.EntryNotFoundError("not there")
        return str(tmp_path / filename)

    names = ["adapter_config.json", "adapter_model.safetensors", "vit.safetensors", "in/x.bin"]

    def model_info(self: Any, repo_id: str, **options: Any) -> Any:
        requested.append((repo_id, options))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert jaxmix.load("owner/name", revision="v1").sites == (SITE, "vit")
    assert fetched == names[:3]
    assert requested == [("owner/name", {"revision": "v1", "timeout": 10.0})]
    fetched.clear()
    assert jaxmix.load("owner/name", ignore="vit*").sites == (SITE,)
    assert fetched == names[:2]
    names.append("non_lora_trainables.bin")
    message = refused(CheckpointError, "owner/name")
    assert "non_lora_trainables.bin: saved by torch" in message
    assert "non_lora_trainables.bin" not in fetched


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list is not requested again, and no file twice."""
    fetched, requested = [], []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        fetched.append(filename)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    request = lambda self, repo_id, **options: requested.append(repo_id)  # noqa: E731
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", request)
    message = refused(CheckpointError, "owner/name")
    assert "adapter_config.json is not in the local cache, and the hub can't be reached" in message
    assert sorted(fetched) == ["adapter_config.json", "adapters.safetensors", "mix.json"]
    assert not requested


def test_index_of_a_model_next_to_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are not downloaded."""
    folders.save(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    index = '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    fetched = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        fetched.append(filename)
        if not (tmp_path / filename).exists():
            raise huggingface_hub.errors.EntryNotFoundError("not there")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    message = refused(CheckpointError, "owner/name")
    assert message.startswith("owner/name on the hub has no adapter_model.safetensors.")
    assert fetched[-1] == "model.safetensors.index.json"
