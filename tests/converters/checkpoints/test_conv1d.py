"""Which modules of a checkpoint are Conv1D, by its config.json and by the command line's option."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.checkpoints.conv1d import CONV1D_TYPES, conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.errors import LayoutError
from jaxmix.placement.orientation import CONV1D_NAMES

from ...messages import full_text
from ..bases import Adapters, load, save_adapter, save_base
from ..cli.running import Captured, main, run_json

VIT_GPT2 = {
    "model_type": "vision-encoder-decoder",
    "encoder": {"model_type": "vit"},
    "decoder": {"model_type": "gpt2"},
}
GPT2 = {"model_type": "gpt2"}
CONFIGS: dict[str, tuple[Any, str, bool | None]] = {
    "llama": ({"model_type": "llama"}, "layers.0.c_proj", False),
    "gpt2": (GPT2, "transformer.h.0.attn.c_proj", True),
    "gpt2's head": (GPT2, "lm_head", False),
    "no part of a name": (GPT2, "h.0.attn.xc_proj", False),
    "a decoder": (VIT_GPT2, "decoder.transformer.h.0.attn.c_proj", True),
    "an encoder": (VIT_GPT2, "encoder.layers.0.c_proj", False),
    "a text model": ({"model_type": "x", "text_config": GPT2}, "model.h.0.attn.c_proj", True),
    "a model's own code": ({**GPT2, "auto_map": {}}, "h.0.attn.c_proj", None),
    "no type": ({"architectures": ["GPT2Model"]}, "h.0.attn.c_proj", None),
}


@pytest.mark.parametrize(("config", "module", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_conv1d_follows_the_model_type(
    config: Any, module: str, expected: bool | None, tmp_path: Path
) -> None:
    """The model's type determines its modules, a nested config's type those of its part."""
    tensor = np.zeros((2, 2), np.float32)
    base = save_base(tmp_path / "base", config=config, extra={f"{module}.weight": tensor})
    pattern = conv1d_pattern(read_checkpoint(base))
    is_conv1d = None if pattern is None else bool(re.fullmatch(pattern, module))
    assert is_conv1d == expected
    assert base_model(base).is_conv1d(module) is expected


def test_bias_may_contradict_the_config(tmp_path: Path) -> None:
    """Converted GPT-2 checkpoints have linear layers and keep the model's type."""
    mlp = {"h.0.c_fc.weight": np.zeros((6, 2)), "h.0.c_fc.bias": np.zeros(6)}
    base = save_base(tmp_path / "base", config=GPT2, extra=mlp)
    assert conv1d_pattern(read_checkpoint(base)) is None


def test_single_file_has_no_pattern(tmp_path: Path) -> None:
    """A file has no config.json that names its Conv1D modules."""
    base = save_base(tmp_path / "base", config=GPT2)
    assert conv1d_pattern(read_checkpoint(base / "model.safetensors")) is None
    (base / "config.json").unlink()
    assert conv1d_pattern(read_checkpoint(base)) is None


def test_types_match_transformers() -> None:
    """The table equals that of the installed transformers."""
    if (spec := importlib.util.find_spec("transformers")) is None or spec.origin is None:
        pytest.skip("transformers is not installed")
    folder = Path(spec.origin).parent / "models"
    construction = re.compile(r"self\.(\w+) = Conv1D\(")
    model_types, names = set(), set()
    for file in folder.glob("*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        if "pytorch_utils import" in text and (attributes := construction.findall(text)):
            names.update(attributes)
            model_types.add(file.parent.name)
    assert names == CONV1D_NAMES
    types = {name.replace("-", "_").removesuffix("_gpt") for name in CONV1D_TYPES}
    assert {name if name != "clvp" else "clvp_decoder" for name in model_types} <= types


@pytest.fixture
def square(tmp_path: Path) -> Adapters:
    """Writes a LoRA of a square layer with its flag on, and bases of two types and of none."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True}
    rng = np.random.default_rng(0)
    factors = {
        "h.0.attn.c_proj.lora_A.weight": rng.normal(size=(2, 4)).astype(np.float32),
        "h.0.attn.c_proj.lora_B.weight": rng.normal(size=(4, 2)).astype(np.float32),
    }
    layer = {
        "h.0.attn.c_proj.weight": np.zeros((4, 4), np.float32),
        "h.0.attn.c_proj.bias": np.zeros(4, np.float32),
    }
    bases = {
        name: save_base(tmp_path / name, config=config, extra=layer)
        for name, config in (("gpt2", GPT2), ("llama", {"model_type": "llama"}), ("unknown", {}))
    }
    return {"lora": save_adapter(tmp_path / "lora", config, factors), **bases}


def _delta(folder: Path) -> np.ndarray:
    update: Any = jaxmix.load(folder).updates["h.0.attn.c_proj"]
    return 2 * update.b @ update.a


def test_merge_follows_the_config(square: Adapters, tmp_path: Path) -> None:
    """The model's type decides, not the flag."""
    for name, turn in (("gpt2", True), ("llama", False)):
        jaxmix.merge_checkpoint(square[name], jaxmix.load(square["lora"]), tmp_path / f"{name} out")
        delta = _delta(square["lora"])
        merged = load(tmp_path / f"{name} out")["h.0.attn.c_proj.weight"]
        np.testing.assert_allclose(merged, delta.T if turn else delta, rtol=1e-6)


def test_ambiguous_merge_is_refused(square: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """The error states the remedy in Python and on the command line."""
    adapter, out = jaxmix.load(square["lora"]), tmp_path / "out"
    with pytest.raises(
        LayoutError,
        match=full_text(
            "weights whose orientation is unknown:\n"
            "  h.0.attn.c_proj: h.0.attn.c_proj.weight (4, 4)\n"
            "PyTorch stores them as (out, in) if they are "
            "torch.nn.Linear, as (in, out) if they are transformers' "
            "Conv1D; config.json, the shapes and the biases do not show "
            "which. The adapter's fan_in_fan_out = true is that of the "
            "last layer that PEFT wrapped, and may be wrong for others. "
            "State which modules are Conv1D by a regular expression, '' "
            "for none: layout=jaxmix.Layout('mine', "
            "conv1d=r'.*\\.c_proj')."
        ),
    ):
        jaxmix.merge_checkpoint(square["unknown"], adapter, out)
    args = ("merge", square["unknown"], "-a", square["lora"], "-o", out)
    assert main(*args) == 1
    assert "--conv1d" in capsys.readouterr().err
    assert main(*args, "--conv1d", r".*\.c_proj") == 0
    delta = _delta(square["lora"])
    np.testing.assert_allclose(load(out)["h.0.attn.c_proj.weight"], delta.T, rtol=1e-6)
    assert main(*args, "--conv1d", "", "--force") == 0
    np.testing.assert_allclose(load(out)["h.0.attn.c_proj.weight"], delta, rtol=1e-6)


def test_other_commands_use_config_and_option(
    square: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """They read config.json too, and take the option."""
    base, args = square["unknown"], ("--conv1d", "")
    lora, out = square["lora"], tmp_path / "out"
    both = ("-a", lora, "-a", lora, "-m", "ties_svd", "--density", "0.5", "--rank", "1")
    commands: dict[str, tuple[Any, ...]] = {
        "inspect": ("inspect", lora, "--measure"),
        "export": ("export", "-a", lora, "--rank", "1", "-o", out),
        "combine": ("combine", *both, "-o", tmp_path / "both"),
    }
    for command in commands.values():
        assert main(*command, "--base", base) == 1
        assert "weights whose orientation is unknown" in capsys.readouterr().err
        run_json(capsys, *command, "--base", base, *args)
    run_json(capsys, *commands["inspect"], "--base", square["gpt2"])
