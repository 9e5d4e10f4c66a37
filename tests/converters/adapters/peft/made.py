"""Adapters that PEFT itself makes, saves and runs."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import jaxmix

__all__ = [
    "MHA",
    "Experts",
    "Linears",
    "composed",
    "difference",
    "llama",
    "quiet",
    "reload",
    "run",
    "save",
]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences PEFT's advice, since warnings are errors in tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Linears(nn.Module):
    """Two linear layers with a tanh between them."""

    def __init__(self) -> None:
        """Draw the weights, always the same."""
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(12, 20)
        self.two = nn.Linear(20, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Layer, tanh, layer."""
        return self.two(torch.tanh(self.one(x)))


class MHA(nn.Module):
    """PyTorch's attention, whose input projection is not a module."""

    def __init__(self) -> None:
        """One attention."""
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each number of the batch attends to the others."""
        return self.attn(x[None], x[None], x[None])[0]


class _Stack(nn.Module):
    """Three experts that all run, as in transformers 5, or (in, out) as in GPT-OSS."""

    def __init__(self, in_first: bool) -> None:
        super().__init__()
        self.is_transposed = in_first
        shapes = ((3, 12, 10), (3, 10, 7)) if in_first else ((3, 10, 12), (3, 7, 10))
        self.up, self.down = (nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = "enm,emk->enk" if self.is_transposed else "enm,ekm->enk"
        inside = torch.einsum(ends, x[None].expand(3, -1, -1), self.up)
        return torch.einsum(ends, torch.tanh(inside), self.down).sum(0)


class Experts(nn.Module):
    """A stack of experts: two parameters of one module."""

    def __init__(self, in_first: bool = False) -> None:
        """Three experts."""
        super().__init__()
        torch.manual_seed(0)
        self.mlp = _Stack(in_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Their sum."""
        return self.mlp(x)


def llama(**options: Any) -> LlamaForCausalLM:
    """Returns a tiny Llama, always with the same weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **options})).eval()


def save(model: nn.Module, config: Any, folder: Path, **options: Any) -> Any:
    """Adapts a copy with PEFT, moves all trained numbers, and saves it; returns PEFT's model."""
    with quiet():
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, param in adapted.named_parameters():
                if param.requires_grad and "ranknum" not in name:
                    param.add_(0.3 * torch.randn(param.shape, generator=draws))
        # PEFT's model card, which nothing reads, takes longer than all else that it saves.
        with mock.patch.object(type(adapted), "create_or_update_model_card"):
            adapted.save_pretrained(str(folder), **options)
    return adapted.eval()


def reload(model: nn.Module, folder: Path) -> Any:
    """Loads a folder with PEFT."""
    with quiet():
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def run(model: Any) -> np.ndarray:
    """Returns the output for one input: tokens for a language model, numbers otherwise."""
    torch.manual_seed(2)
    with quiet(), torch.no_grad():
        if any(isinstance(part, LlamaForCausalLM) for part in model.modules()):
            return model(torch.arange(10)[None]).logits.numpy()
        return model(torch.randn(5, 12)).numpy()


def composed(
    model: nn.Module, folder: Path, params: Mapping[str, Any] | None = None, *, base: bool = False
) -> nn.Module:
    """Returns a copy of the base model with jaxmix's weights; loads with or without the base."""
    state = params or {name: x.numpy().copy() for name, x in model.state_dict().items()}
    out = jaxmix.compose(state, [jaxmix.load(folder, base=state if base else None)])
    copied = copy.deepcopy(model)
    copied.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in out.items()})
    return copied.eval()


def difference(ours: np.ndarray, truth: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest number of the truth."""
    assert ours.shape == truth.shape
    return float(np.abs(ours - truth).max() / np.abs(truth).max())
