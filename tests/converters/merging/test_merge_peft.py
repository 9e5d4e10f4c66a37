"""Merged folders in transformers: the logits of PEFT's mixed model, and `compose`'s weights."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoHaConfig, LoraConfig, OFTConfig, PeftConfig
from torch import nn

import jaxmix
from jaxmix.converters import cli

from ...parity.harness import mixed_model, save_adapter
from ..bases import header, load

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = np.random.default_rng(0).integers(0, 40, size=(3, 9))
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15}
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(target_modules=ALL, r=3, lora_alpha=5, use_rslora=True),
    "loha": lambda: LoHaConfig(target_modules=["q_proj", "v_proj", "up_proj"], r=2, alpha=3),
    "oft": lambda: OFTConfig(target_modules=ALL, oft_block_size=4),
    "embedding": lambda: LoraConfig(target_modules=["embed_tokens", "q_proj"], r=2),
    "head": lambda: LoraConfig(target_modules=["v_proj"], r=2, modules_to_save=["lm_head"]),
}


@cache
def model(tied: bool = False) -> Any:
    """A small Llama with weights of about unit gain, in float32."""
    torch.manual_seed(7)
    config = hf.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    llama = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for param in llama.parameters():
            param.copy_(torch.randn_like(param) * 0.2 + (param.ndim == 1 and 0.9))
    return llama


@cache
def saved(root: Path, name: str) -> Path:
    """The folder to which PEFT saved one of the adapters."""
    save_adapter(model(), CONFIGS[name](), root / name, seed=len(name))
    return root / name


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Saves adapters by their names."""
    root = tmp_path_factory.mktemp("peft")
    return lambda *names: [saved(root, name) for name in names]


def logits(net: nn.Module) -> np.ndarray:
    """For the tokens."""
    with torch.no_grad():
        return net(torch.from_numpy(TOKENS)).logits.numpy()


def difference(ours: np.ndarray, truth: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    assert np.isfinite(ours).all() and ours.shape == truth.shape
    return float(np.abs(ours - truth).max() / np.abs(truth).max())


def opened(folder: Path, dtype: torch.dtype) -> Any:
    """Loads the folder in transformers, which must find every tensor."""
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    loaded: Any = hf.AutoModelForCausalLM.from_pretrained(folder, **options)
    net, record = loaded
    assert not any(record.values()), record
    return net.eval()


# Each mix, each dtype, and shards or none; `test_merge.py` has every dtype with and without shards.
LOGITS = (
    (("lora", "loha", "oft"), torch.float64, "1GB"),
    (("lora", "loha", "oft"), torch.bfloat16, "3KB"),
    (("oft", "lora"), torch.float32, "3KB"),
    (("head", "oft"), torch.float32, "1GB"),
)


@pytest.mark.one_of(2)
@pytest.mark.parametrize(("names", "dtype", "size"), LOGITS)
def test_logits_of_peft(
    names: tuple[str, ...],
    dtype: torch.dtype,
    size: str,
    folders: Callable[..., list[Path]],
    tmp_path: Path,
) -> None:
    """Merged on the command line and loaded by transformers, the model has PEFT's mixed forward."""
    paths, base, out = folders(*names), tmp_path / "base", tmp_path / "out"
    copy.deepcopy(model()).to(dtype).save_pretrained(base, max_shard_size=size)
    assert (len(list(base.glob("*.safetensors"))) > 2) == (size == "3KB")
    wide = torch.promote_types(dtype, torch.float32)
    truth = logits(mixed_model(opened(base, wide), paths))
    args = [arg for path in paths for arg in ("-a", str(path))]
    assert cli.main(["merge", str(base), *args, "--out", str(out)]) == 0
    merged = opened(out, dtype)
    params, merged_params = load(base), load(out)
    with jax.enable_x64(True) if dtype == torch.float64 else nullcontext():
        expected = jaxmix.compose(params, [jaxmix.load(path) for path in paths])
    changed = 0
    for name, tensor in merged_params.items():
        assert tensor.tobytes() == np.asarray(expected[name]).tobytes(), name
        changed += tensor.tobytes() != params[name].tobytes()
    assert changed >= 8 and merged_params.keys() == params.keys()
    assert all(header(path) == header(base / path.name) for path in out.glob("*.safetensors"))
    # bfloat16 weights are rounded once; the bound is for these few layers.
    assert difference(logits(merged.to(wide)), truth) < TOLERANCES[dtype]
    assert difference(logits(model()), truth) > 1


@pytest.mark.parametrize("size", ["1GB", "3KB"])
def test_tied_model(size: str, folders: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Untied by --untie, it has PEFT's forward, which changes only the embedding."""
    base, out = tmp_path / "base", tmp_path / "out"
    model(tied=True).save_pretrained(base, max_shard_size=size)
    (adapter,) = folders("embedding")
    args = ["merge", str(base), "-a", str(adapter), "--out", str(out)]
    assert [cli.main(args), cli.main([*args, "--untie"])] == [1, 0]
    merged = opened(out, torch.float32)
    assert not merged.config.tie_word_embeddings
    truth = logits(mixed_model(opened(base, torch.float32), folders("embedding")))
    assert difference(logits(merged), truth) < 1e-5
    changed = (merged.model.embed_tokens.weight - merged.lm_head.weight).abs().max()
    assert changed > 0.1
