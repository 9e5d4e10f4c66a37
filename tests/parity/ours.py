"""Composes PEFT's folders with jaxmix and runs the resulting weights in the torch model."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn

import jaxmix
from jaxmix.converters.adapters.peft import peft_stack

from .harness import layout, state

__all__ = ["composed", "jaxmix_model"]


def composed(
    params: Mapping[str, np.ndarray],
    folders: Sequence[Path],
    layout_table: jaxmix.Layout | None = None,
) -> dict[str, np.ndarray]:
    """Returns jaxmix's weights for PEFT's stack of these folders."""
    with jax.enable_x64(True):
        adapters = [jaxmix.load(folder, name=f"a{i}") for i, folder in enumerate(folders)]
        out = jaxmix.compose(params, [peft_stack(adapters)], layout=layout_table)
        return {name: np.asarray(leaf) for name, leaf in out.items()}


def jaxmix_model(model: nn.Module, folders: Sequence[Path]) -> nn.Module:
    """Returns a copy of the model with jaxmix's weights."""
    composed_copy = copy.deepcopy(model)
    weights = composed(state(model), folders, layout(model))
    composed_copy.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in weights.items()})
    return composed_copy.eval()
