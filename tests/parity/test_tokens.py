"""A LoRA with trained tokens matches PEFT around an OFT and a LoHa, nested by hand."""

from pathlib import Path

import jax
import numpy as np
import peft
import torch

import jaxmix

from .harness import TOLERANCE, build, difference, forward, inputs, save_adapter, state
from .layer_cases import NETS
from .nested import nested


def test_nested_trained_tokens_match(tmp_path: Path) -> None:
    """PEFT's mixed model can't load trained tokens, but nested wrappers can."""
    net, on_two = NETS["embedding"], {"target_modules": ["two"]}
    model, x = build(net), inputs(net)
    configs = [
        peft.OFTConfig(oft_block_size=2, **on_two),
        peft.LoHaConfig(r=2, alpha=3, **on_two),
        peft.LoraConfig(r=3, trainable_token_indices={"one": [1, 4, 9]}, **on_two),
    ]
    folders = [tmp_path / str(i) for i in range(3)]
    for i, (config, folder) in enumerate(zip(configs, folders, strict=True)):
        save_adapter(model, config, folder, seed=i)
    truth = forward(nested(model, folders), x)
    with jax.enable_x64(True):
        weights = jaxmix.compose(state(model), [jaxmix.load(folder) for folder in folders])
    composed_model = build(net)
    composed_model.load_state_dict(
        {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    )
    assert difference(forward(composed_model.eval(), x), truth) < TOLERANCE
    assert difference(forward(nested(model, folders[:2]), x), truth) > 1e-2
