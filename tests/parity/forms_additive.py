"""Forms of PEFT's types that add a Δ computed in their own way.

Types that cannot wrap a wrapped layer, or that need torch's default dtype, are in `test_drawn`.
"""

from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.lora.config import KasaConfig

from .nested import Form

__all__ = ["FORMS"]

_FAN_IN = {"fan_in_fan_out": True}
# PEFT computes these Δ in float32, whatever the weights' dtype.
_FLOAT32_TOLERANCE = 1e-6


def _normal_draws(std: float) -> Any:
    """Returns a function that draws factors, large enough for types with a small scale."""

    def draw(name: str, value: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
        return std * rng.normal(size=value.shape)

    return draw


def _linear_and_gpt2(
    name: str, config_class: Any, options: dict[str, Any], **fields: Any
) -> list[Form]:
    """Returns forms for linear layers, GPT-2's Conv1D layers, and square Conv1D layers."""
    return [
        Form(f"{name}-linear", "linear", config_class, options, **fields),
        Form(f"{name}-gpt2", "gpt2", config_class, {**options, **_FAN_IN}, **fields),
        Form(f"{name}-gpt2_square", "gpt2_square", config_class, {**options, **_FAN_IN}, **fields),
    ]


_VBLORA = {"r": 3, "num_vectors": 9, "vector_length": 2}
_WAVEFT = {"n_frequency": 30, "scaling": 2.0}
_SUPERTUNING = {"sparsity": 0.8}
_WAVELETS = ("db2", "db5", "db10", "sym4", "sym9", "coif1", "coif2", "coif3")

FORMS: list[Form] = [
    Form("delora", "linear", peft.DeloraConfig, {"r": 3}, draw=_normal_draws(3.0)),
    Form(
        "delora-patterns",
        "no_bias",
        peft.DeloraConfig,
        {"r": 3, "rank_pattern": {"two": 2}, "lambda_pattern": {"one": 3}},
        draw=_normal_draws(3.0),
    ),
    *_linear_and_gpt2("gralora", peft.GraloraConfig, {"r": 4, "alpha": 5, "gralora_k": 2}),
    *_linear_and_gpt2(
        "gralora-hybrid", peft.GraloraConfig, {"r": 4, "gralora_k": 2, "hybrid_r": 3}
    ),
    *_linear_and_gpt2("vblora", peft.VBLoRAConfig, {**_VBLORA, "topk": 2}),
    *_linear_and_gpt2(
        "vblora-topk", peft.VBLoRAConfig, {**_VBLORA, "topk": 3, "save_only_topk_weights": True}
    ),
    *_linear_and_gpt2(
        "unilora", peft.UniLoraConfig, {"r": 3, "theta_d_length": 20, "save_indices": True}
    ),
    Form(
        "c3a",
        "linear",
        peft.C3AConfig,
        {"block_size": 2},
        tolerance=_FLOAT32_TOLERANCE,
        draw=_normal_draws(3.0),
    ),
    Form(
        "c3a-patterns",
        "mlp",
        peft.C3AConfig,
        {
            "block_size": 2,
            "block_size_pattern": {"0.lin": 4},
            "target_modules": ["0.lin", "1.lin"],
        },
        tolerance=_FLOAT32_TOLERANCE,
        draw=_normal_draws(3.0),
    ),
    # PEFT's forward reads the innermost weight and ignores the wrappers in between.
    Form("supertuning", "linear", peft.SupertuningConfig, _SUPERTUNING, is_nested=False),
    Form("supertuning-no_bias", "no_bias", peft.SupertuningConfig, _SUPERTUNING, is_nested=False),
    Form(
        "supertuning-supra",
        "linear",
        peft.SupertuningConfig,
        {**_SUPERTUNING, "r": 3},
        is_nested=False,
    ),
    *_linear_and_gpt2("waveft", peft.WaveFTConfig, _WAVEFT, needs_base=True),
    *(
        Form(
            f"waveft-{wavelet}",
            "linear",
            peft.WaveFTConfig,
            {**_WAVEFT, "wavelet_family": wavelet},
            needs_base=True,
        )
        for wavelet in _WAVELETS
    ),
    *_linear_and_gpt2(
        "waveft-plain", peft.WaveFTConfig, {**_WAVEFT, "use_idwt": False}, needs_base=True
    ),
    # PEFT allows no other adapter next to it, and computes the singular values in float32.
    Form(
        "kasa",
        "linear",
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "kasa_config": KasaConfig()},
        is_nested=False,
        tolerance=1e-5,
    ),
]
