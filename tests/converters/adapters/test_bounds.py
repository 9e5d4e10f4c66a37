"""Files that claim more than they hold: nested recipes, shapes, counts, keys with many dots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.format import LocatedAdapter
from jaxmix.converters.adapters.peft.keys import _is_saved
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ...messages import full_text
from ..bases import Adapters


def _recipe(place: Path, parts: list[dict[str, Any]]) -> None:
    place.write_text(json.dumps({"format": "jaxmix", "version": 1, "parts": parts}))


def test_nested_recipes(adapters: Adapters) -> None:
    """Eight levels with ten parts each would be a hundred million parts."""
    tmp = adapters["lora"].parent
    _recipe(tmp / "0.json", [{"source": "lora", "name": f"{i}"} for i in range(10)])
    for depth in range(1, 9):
        parts = [{"source": f"{depth - 1}.json", "name": f"{i}"} for i in range(10)]
        _recipe(tmp / f"{depth}.json", parts)
    assert len(jaxmix.load(tmp / "2.json").parts) == 1000
    outer = "".join(f"{tmp}/{n}.json: part 1, {n - 1}.json: " for n in (8, 7, 6, 5, 4))
    message = (
        f"{outer}{tmp}/3.json has more than 1,024 parts, including those of the recipes in it. "
        "Save the inner recipes as one adapter: jaxmix.combine or jaxmix.to_lora."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(tmp / "8.json")


def test_each_file_of_a_recipe_is_read_once(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    before = LocatedAdapter.read

    def counted(self: LocatedAdapter, *args: Any, **options: Any) -> Any:
        read.append(self.path)
        return before(self, *args, **options)

    tmp = adapters["lora"].parent
    _recipe(tmp / "a.json", [{"source": "lora", "name": f"{i}", "strength": i} for i in range(4)])
    _recipe(tmp / "b.json", [{"source": "a.json", "name": f"{i}"} for i in range(3)])
    monkeypatch.setattr(LocatedAdapter, "read", counted)
    loaded: Any = jaxmix.load(tmp / "b.json")
    assert [part.name for part in loaded.parts][:5] == ["0/0", "0/1", "0/2", "0/3", "1/0"]
    assert [part.strength for part in loaded.parts][:4] == [0, 1, 2, 3]
    assert [path.name for path in read] == ["b.json", "lora"]


def test_keys_with_many_dots(tmp_path: Path) -> None:
    """Matched as PEFT does, without a list of all prefixes."""
    for path, names, is_saved in (
        ("model.head.weight", ["head"], True),
        ("model.lm_head.weight", ["head"], True),
        ("model.head", ["head"], False),
        ("model.headless.weight", ["head"], False),
        ("head.x.weight", ["model.head"], False),
        ("weight", [""], False),
        ("a.weight", [""], True),
    ):
        parts = path.split(".")
        modules = [".".join(parts[:n]) for n in range(1, len(parts))]
        assert any(module.endswith(name) for module in modules for name in names) is is_saved
        assert _is_saved(path, names) is is_saved
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": ["head"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    site = "a." * 40_000 + "head"
    tensors = {
        f"base_model.model.{site}.weight": np.ones((2, 3), np.float32),
        "base_model.model.q.lora_A.weight": np.ones((1, 3), np.float32),
        "base_model.model.q.lora_B.weight": np.ones((2, 1), np.float32),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert jaxmix.load(tmp_path).sites == ("q", site)


def _sparse(path: Path, key: str = "") -> None:
    """A safetensors file of 4 GiB of which only the header is on disk."""
    entry = {"dtype": "F32", "shape": [1 << 15, 1 << 15], "data_offsets": [0, 1 << 32]}
    text = json.dumps({key or "x": entry}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 32))


@pytest.mark.parametrize("kind", ["peft", "mlx", "kohya", "diffusers", "qwix", "mix", "bin"])
def test_sparse_files(kind: str, tmp_path: Path) -> None:
    """They claim any size with a few kilobytes; every format refuses to allocate it."""
    config, options = tmp_path / "adapter_config.json", {}
    names = {"peft": "adapter_model.safetensors", "mlx": "adapters.safetensors"}
    names |= {"mix": "mix.safetensors", "bin": "adapter_model.bin"}
    path = tmp_path / names.get(kind, "x.safetensors")
    keys = {
        "kohya": "lora_unet_a.lora_down.weight",
        "diffusers": "transformer.a.lora_A.weight",
        "qwix": "a/kernel_lora_a",
    }
    _sparse(path, keys.get(kind, ""))
    if kind in ("peft", "bin"):
        config.write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    if kind == "bin":
        pytest.importorskip("torch")
    if kind == "mlx":
        mlx_config = {"fine_tune_type": "lora", "lora_parameters": {"scale": 1.0, "rank": 1}}
        config.write_text(json.dumps(mlx_config))
    if kind == "mix":
        jaxmix.save(
            jaxmix.Adapter({"q": LoRA(np.ones((1, 2)), np.ones((2, 1)), 1.0)}), tmp_path / "m"
        )
        (tmp_path / "m" / path.name).unlink()
        path.rename(tmp_path / "m" / path.name)
    if path.suffix == ".safetensors" and kind in keys:
        place = path
    else:
        place = tmp_path / "m" if kind == "mix" else tmp_path
    if kind == "qwix":
        options["alpha"] = 1.0
    with pytest.raises(CheckpointError) as caught:
        jaxmix.load(place, **options)
    assert "claims 4,294,967," in str(
        caught.value
    ) and "are stored on disk. Was the download" in str(caught.value)
