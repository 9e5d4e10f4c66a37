"""``AutoPeftModel…`` opens exported adapters, which need no rank patterns."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import jaxmix

# PEFT uses a deprecated name of transformers, and looks for a config on the hub.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
TOKENS = torch.tensor([[3, 7, 11, 2, 29]])
LORA_OPTIONS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 6}


def save_base(kind: Any, folder: Path, **config: Any) -> str:
    """Saves a tiny Llama with a head."""
    torch.manual_seed(0)
    kind(transformers.LlamaConfig(**SIZES, **config)).double().save_pretrained(folder)
    return str(folder)


def with_random_factors(model: Any) -> Any:
    """Returns the model with non-zero factors."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = (
                torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 3
            )
            assert "base_layer" not in name
    return model.eval()


def save_trained(kind: Any, base_folder: str, out: Path, config: peft.LoraConfig) -> torch.Tensor:
    """Saves an adapter with PEFT; returns the logits with it."""
    # PEFT casts factors to float32 by default.
    model = with_random_factors(
        peft.get_peft_model(
            kind.from_pretrained(base_folder, dtype=torch.float64),
            config,
            autocast_adapter_dtype=False,
        )
    )
    model.save_pretrained(out)
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def assert_close(actual: torch.Tensor, truth: torch.Tensor) -> None:
    np.testing.assert_allclose(actual.numpy(), truth.numpy(), rtol=1e-4, atol=1e-5)


def test_causal_model_without_patterns(tmp_path: Path) -> None:
    """Without rank patterns, the re-exported adapter and one LoRA give the same logits."""
    kind = transformers.AutoModelForCausalLM
    base_folder = save_base(transformers.LlamaForCausalLM, tmp_path / "base")
    patterns_config = {
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 9, "layers.1.mlp.down_proj": 1},
    }
    config = peft.LoraConfig(**LORA_OPTIONS, **patterns_config, task_type="CAUSAL_LM")
    truth = save_trained(kind, base_folder, tmp_path / "in", config)
    assert not torch.allclose(truth, logits(kind.from_pretrained(base_folder, dtype=torch.float64)))
    adapter = jaxmix.load(tmp_path / "in")
    model = kind.from_pretrained(base_folder, dtype=torch.float64)
    params = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with jax.enable_x64(True):
        lora = jaxmix.to_lora(adapter, params, rank=0.9999999)
    for name, exported in (("reexported", adapter), ("lora", lora)):
        out = jaxmix.export_peft(exported, tmp_path / name)
        opened = peft.AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float64)
        saved_config = opened.peft_config["default"]
        assert (saved_config.rank_pattern, saved_config.alpha_pattern, saved_config.task_type) == (
            {},
            {},
            "CAUSAL_LM",
        )
        assert_close(logits(opened), truth)


@pytest.mark.parametrize("patterns", [False, True])
def test_classifier_head_is_saved_whole(patterns: bool, tmp_path: Path) -> None:
    kind = transformers.AutoModelForSequenceClassification
    base_folder = save_base(
        transformers.LlamaForSequenceClassification, tmp_path / "base", num_labels=3
    )
    config = peft.LoraConfig(**LORA_OPTIONS, rank_pattern={"q_proj": 2}, task_type="SEQ_CLS")
    truth = save_trained(kind, base_folder, tmp_path / "in", config)
    out = jaxmix.export_peft(jaxmix.load(tmp_path / "in"), tmp_path / "out", patterns=patterns)
    opened = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        str(out), dtype=torch.float64, num_labels=3
    )
    assert_close(logits(opened), truth)


def test_classifier_as_one_lora_has_no_task(tmp_path: Path) -> None:
    """The head becomes a LoRA, which PEFT ignores for this task, so the task is left out."""
    kind = transformers.AutoModelForSequenceClassification
    base_folder = save_base(
        transformers.LlamaForSequenceClassification, tmp_path / "base", num_labels=3
    )
    truth = save_trained(
        kind, base_folder, tmp_path / "in", peft.LoraConfig(**LORA_OPTIONS, task_type="SEQ_CLS")
    )
    model = kind.from_pretrained(base_folder, dtype=torch.float64)
    params = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with jax.enable_x64(True):
        lora = jaxmix.to_lora(jaxmix.load(tmp_path / "in"), params)
    out = jaxmix.export_peft(lora, tmp_path / "out")
    assert_close(logits(peft.PeftModel.from_pretrained(model, str(out))), truth)


def test_adapter_without_a_task_opens_by_class(tmp_path: Path) -> None:
    """Without a task ``AutoPeftModel`` opens the adapter; with one, the task's class."""
    base_folder = save_base(transformers.LlamaForCausalLM, tmp_path / "base")
    kind = transformers.LlamaForCausalLM
    truth = save_trained(kind, base_folder, tmp_path / "in", peft.LoraConfig(**LORA_OPTIONS))
    adapter = jaxmix.load(tmp_path / "in")
    out = jaxmix.export_peft(adapter, tmp_path / "out")
    assert_close(logits(peft.AutoPeftModel.from_pretrained(str(out), dtype=torch.float64)), truth)
    out = jaxmix.export_peft(adapter, tmp_path / "task", task_type="CAUSAL_LM")
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float64)
    assert_close(logits(opened), truth)


def test_attention_with_two_ranks_is_padded(tmp_path: Path) -> None:
    """PEFT has one rank and scale for both projections; jaxmix pads and rescales."""

    class Net(torch.nn.Module):
        """A single attention layer."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.at = torch.nn.MultiheadAttention(8, 2, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.at(x, x, x, need_weights=False)[0]

    rng, net = np.random.default_rng(0), Net()
    normal = lambda *shape: rng.normal(size=shape)  # noqa: E731
    updates = {
        "at.in_proj_weight": jaxmix.families.LoRA(normal(2, 8), normal(24, 2), 0.5),
        "at.out_proj": jaxmix.families.LoRA(normal(3, 8), normal(8, 3), 0.7),
    }
    out = jaxmix.export_peft(jaxmix.Adapter(updates), tmp_path / "out")
    x = torch.from_numpy(normal(5, 1, 8))
    loaded = peft.PeftModel.from_pretrained(Net(), str(out), autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for leaf, update in (("in_proj_weight", 0), ("out_proj.weight", 1)):
            lora: Any = list(updates.values())[update]
            net.at.get_parameter(leaf).add_(torch.from_numpy(lora.scale * (lora.b @ lora.a)))
        assert_close(loaded.double()(x), net.eval()(x))
