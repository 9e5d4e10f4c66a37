"""The line of Python that `merge` prints at its end, which opens the result."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.cli.opening import opening

from ..bases import Adapters
from .running import Captured, main


@pytest.mark.parametrize(
    ("file", "config", "call"),
    [
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, "transformers.GPT2LMHeadModel"),
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "diffusers.UNet2DConditionModel"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "diffusers.DiffusionPipeline"),
        ("config.json", {"model_type": "llama"}, None),
        ("config.json", {"architectures": ["A", "B"]}, None),
        ("config.json", {"architectures": ["os.system('x')#"]}, None),
        ("config.json", {"architectures": [3]}, None),
        ("other.json", {}, None),
    ],
)
def test_call_follows_the_config(file: str, config: Any, call: str | None, tmp_path: Path) -> None:
    """The class is the one that the config names, if it is a valid name."""
    (tmp_path / file).write_text(json.dumps(config))
    assert opening(tmp_path) == (call and f'{call}.from_pretrained("{tmp_path}")')


def test_single_file_has_no_call(tmp_path: Path) -> None:
    """A single safetensors file does not determine its class."""
    assert opening(tmp_path / "model.safetensors") is None


def test_merge_ends_with_the_call(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """It is the last line."""
    config = (
        json.loads((base / "config.json").read_text()) if (base / "config.json").exists() else {}
    )
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    assert main("merge", base, "-a", adapters["lora"], "-o", tmp_path / "out") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'open it: transformers.LlamaForCausalLM.from_pretrained("{tmp_path}/out")'
