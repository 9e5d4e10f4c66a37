"""AdapterHub's LoRA and IA3 by the formulas of `adapters` 1.3.0, and what is refused.

The formulas were compared with the package's own forward in float64: BERT, Llama and GPT-2 agree to
2e-15, with q, k and v fused or not.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import IA3, Replace

from .formats.files import drawn
from .peft.folders import refused

LORA = {"architecture": "lora", "composition_mode": "add", "r": 2, "alpha": 3}
SCALE = {**LORA, "composition_mode": "scale", "r": 1, "alpha": 1}
Q = "bert.encoder.layer.0.attention.self.query"
FUSED = "transformer.h.0.attn.c_attn"


def folder(place: Path, tensors: dict[str, Any], config: Any, **fields: Any) -> Path:
    """Writes a folder as `model.save_adapter` does."""
    place.mkdir(exist_ok=True)
    record = {"model_type": "bert", "model_name": "bert-base", "name": "task", "config": config}
    (place / "adapter_config.json").write_text(json.dumps({**record, **fields}))
    save_file(tensors, place / "adapter.safetensors")
    return place


def keyed(site: str, **factors: Any) -> dict[str, Any]:
    """Returns factors under AdapterHub's keys."""
    return {f"{site}.loras.task.{name}": array for name, array in factors.items()}


def applied(place: Path, site: str, weight: Any, bias: Any, **options: Any) -> tuple[Any, Any]:
    """Returns a layer's weight and bias with the adapter applied."""
    params = {f"{site}.weight": weight, f"{site}.bias": bias}
    out: Any = jaxmix.compose(params, jaxmix.load(place, **options))
    return out[f"{site}.weight"], out[f"{site}.bias"]


def test_lora_formula(tmp_path: Path) -> None:
    """The weight is W + alpha / r · BA; dropout and initialization fields are ignored."""
    a, b, weight, bias = drawn(2, 4), drawn(6, 2), drawn(6, 4), drawn(6)
    config = {**LORA, "dropout": 0.1, "init_weights": "bert", "leave_out": [3], "vera_d": None}
    place = folder(tmp_path / "style", keyed(Q, lora_A=a, lora_B=b), config)
    assert jaxmix.load(place).name == jaxmix.load(place / "adapter.safetensors").name == "style"
    output, new_bias = applied(place, Q, weight, bias)
    np.testing.assert_allclose(output, weight + 1.5 * b @ a, rtol=1e-6)
    np.testing.assert_array_equal(new_bias, bias)


@pytest.mark.parametrize("matrices", [["q", "v"], ["k"], ["v", "q", "k", "o"]])
def test_fused_projection_has_blocks_per_third(matrices: list[str], tmp_path: Path) -> None:
    """Each third of a fused projection that has factors gets its own block."""
    thirds = [i for i, x in enumerate("qkv") if x in matrices]
    a, b = drawn(2 * len(thirds), 4), drawn(3 * len(thirds), 2)
    config = {**LORA, "attn_matrices": matrices}
    place = folder(tmp_path, keyed(FUSED, lora_A=a, lora_B=b), config, model_type="gpt2")
    delta = np.zeros((9, 4), np.float32)
    for j, i in enumerate(thirds):
        delta[3 * i : 3 * i + 3] = 1.5 * b[3 * j : 3 * j + 3] @ a[2 * j : 2 * j + 2]
    update: Any = jaxmix.load(place).updates[FUSED]
    assert update.transposed
    np.testing.assert_allclose(update.scale * update.b @ update.a, delta, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1, 2])
def test_ia3_scales_outputs_and_bias(alpha: int, tmp_path: Path) -> None:
    """IA3 scales the outputs and the bias, in a fused projection only the chosen thirds."""
    vector, weight, bias = drawn(6, 1), drawn(6, 4), drawn(6)
    config = {**SCALE, "alpha": alpha, "attn_matrices": ["k", "v"]}
    place = folder(tmp_path, keyed(Q, lora_B=vector), config)
    output, scaled = applied(place, Q, weight, bias)
    np.testing.assert_allclose(output, alpha * vector * weight, rtol=1e-6)
    np.testing.assert_allclose(scaled, alpha * vector[:, 0] * bias, rtol=1e-6)
    place = folder(tmp_path, keyed(FUSED, lora_B=vector), config)
    update: Any = jaxmix.load(place).updates[FUSED]
    assert isinstance(update, IA3)
    factors = alpha * np.concatenate([np.ones(3, np.float32), vector[:, 0]])
    np.testing.assert_array_equal(update.vector, factors)


def test_saved_head_is_loaded(tmp_path: Path) -> None:
    """A saved head next to the adapter is loaded; a torch file is reported."""
    tensors = keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2))
    place = folder(tmp_path, tensors, LORA)
    save_file(
        {"lm_head.weight": drawn(5, 4), f"{Q}.bias": drawn(6)}, place / "model_head.safetensors"
    )
    adapter: Any = jaxmix.load(place, base=[Q])
    assert isinstance(adapter.updates["lm_head"], Replace) and set(adapter.sites) == {Q, "lm_head"}
    (place / "pytorch_model_head.bin").write_bytes(b"")
    message = refused(CheckpointError, place)
    assert "\n  pytorch_model_head.bin: saved by torch" in message
    assert jaxmix.load(place, ignore="*head*").sites == (Q,)


def test_older_torch_file_is_loaded(tmp_path: Path) -> None:
    """A torch file, as older versions write it, is loaded."""
    torch = pytest.importorskip("torch")
    tensors = keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2))
    place = folder(tmp_path, tensors, LORA)
    (place / "adapter.safetensors").unlink()
    torch.save(
        {k: torch.from_numpy(x.copy()) for k, x in tensors.items()}, place / "pytorch_adapter.bin"
    )
    assert jaxmix.load(place).sites == (Q,)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "pfeiffer",
            "its method is 'pfeiffer', expected 'lora', which is LoRA or IA3. No other method can "
            "be expressed as changed weights.",
        ),
        ({"mh_adapter": True}, "its method is 'bottleneck', expected 'lora'"),
        ({"architecture": "prefix_tuning"}, "its method is 'prefix_tuning', expected 'lora'"),
        ({**LORA, "use_gating": True, "vera_d": 0.1}, ":\n  use_gating = True\n  vera_d = 0.1\n"),
        (
            {**LORA, "use_dora": True},
            "with fields that jaxmix does not support:\n  use_dora = True\n",
        ),
        (
            {**LORA, "new": [1]},
            ":\n  new = [1]\nIf possible, merge it there with model.merge_adapter(name)",
        ),
    ],
)
def test_unsupported_methods_are_named(config: Any, expected: str, tmp_path: Path) -> None:
    """The error names the method or the fields."""
    place = folder(tmp_path, keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2)), config)
    message = refused(UnsupportedError, place)
    assert message.startswith(f"{place} was saved by AdapterHub's adapters") and expected in message


@pytest.mark.parametrize(
    "fields",
    [{"r": 0}, {"r": 2.5}, {"alpha": "3"}, {"composition_mode": "mul"}, {"attn_matrices": 1}],
)
def test_invalid_fields_are_shown(fields: dict[str, Any], tmp_path: Path) -> None:
    """The error shows the values of the four fields."""
    config = {**LORA, **fields}
    place = folder(tmp_path, keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2)), config)
    message = refused(CheckpointError, place)
    assert "r, alpha, composition_mode and attn_matrices are [" in message
    assert "expected a positive integer, a number, 'add' or 'scale', and a list." in message


def test_forced_format_needs_their_config(tmp_path: Path) -> None:
    """A forced format is refused without AdapterHub's config."""
    assert refused(CheckpointError, tmp_path, format="adapterhub") == (
        f"{tmp_path} has no adapter_config.json of AdapterHub, expected an object "
        f"with config and model_type. Pass the folder that model.save_adapter wrote."
    )


def test_unknown_keys_are_listed(tmp_path: Path) -> None:
    """Unknown keys are listed; two adapters in one file are refused."""
    tensors = {
        **keyed(Q, lora_A=drawn(2, 4), gate=drawn(1)),
        "x.shared_parameters.task.a": drawn(1),
    }
    message = refused(CheckpointError, folder(tmp_path, tensors, LORA))
    assert (
        f"\n  {Q}.loras.task.gate: float32 (1,)\n  x.shared_parameters.task.a: float32 (1,)\n"
        in message
    )
    tensors = keyed(Q, lora_A=drawn(2, 4), lora_B=drawn(6, 2))
    tensors |= {key.replace("task", "other"): x for key, x in tensors.items()}
    message = refused(CheckpointError, folder(tmp_path, tensors, LORA))
    assert "contains several adapters: other, task. Save each in its own folder" in message


@pytest.mark.parametrize(
    ("config", "factors", "expected"),
    [
        (LORA, {"lora_A": (2, 4)}, "expected lora_B with two axes"),
        (LORA, {"lora_A": (4, 4), "lora_B": (6, 2)}, "expected lora_A (2, in), lora_B (out, 2)"),
        (LORA, {"lora_A": (2, 4), "lora_B": (6, 3)}, "expected lora_A (2, in), lora_B (out, 2)"),
        (SCALE, {"lora_A": (1, 4), "lora_B": (6, 1)}, "and r = 1, expected only lora_B (out, 1)"),
        (SCALE, {"lora_B": (6,)}, "expected lora_B with two axes"),
        ({**SCALE, "r": 2}, {"lora_B": (6, 1)}, "and r = 2, expected only lora_B (out, 1)"),
    ],
)
def test_misshaped_factors_are_reported(
    config: Any, factors: Any, expected: str, tmp_path: Path
) -> None:
    """The error names the site and the expected shapes."""
    tensors = keyed(Q, **{name: drawn(*shape) for name, shape in factors.items()})
    place = folder(tmp_path, tensors, config)
    message = refused(ShapeError, place)
    assert message.startswith(
        f"{place / 'adapter.safetensors'}: factors that do not fit the config:"
    )
    assert f"\n  {Q}: " in message and expected in message
