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

_FAN = {"fan_in_fan_out": True}
# PEFT computes these Δ in float32, whatever the weights' dtype.
_SINGLE = 1e-6


def _spread(std: float) -> Any:
    """Draws factors with this deviation, so types with a small scale have an effect."""

    def draw(name: str, now: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
        return std * rng.normal(size=now.shape)

    return draw


def _both(name: str, make: Any, options: dict[str, Any], **fields: Any) -> list[Form]:
    """Returns forms of linear layers, of GPT-2's layers, and of square layers of GPT-2."""
    return [
        Form(f"{name}-linear", "linear", make, options, **fields),
        Form(f"{name}-gpt2", "gpt2", make, {**options, **_FAN}, **fields),
        Form(f"{name}-gpt2_square", "gpt2_square", make, {**options, **_FAN}, **fields),
    ]


_VB = {"r": 3, "num_vectors": 9, "vector_length": 2}
_WAVE = {"n_frequency": 30, "scaling": 2.0}
_SUPER = {"sparsity": 0.8}
_WAVELETS = ("db2", "db5", "db10", "sym4", "sym9", "coif1", "coif2", "coif3")

FORMS: list[Form] = [
    Form("delora", "linear", peft.DeloraConfig, {"r": 3}, draw=_spread(3.0)),
    Form(
        "delora-patterns",
        "no_bias",
        peft.DeloraConfig,
        {"r": 3, "rank_pattern": {"two": 2}, "lambda_pattern": {"one": 3}},
        draw=_spread(3.0),
    ),
    *_both("gralora", peft.GraloraConfig, {"r": 4, "alpha": 5, "gralora_k": 2}),
    *_both("gralora-hybrid", peft.GraloraConfig, {"r": 4, "gralora_k": 2, "hybrid_r": 3}),
    *_both("vblora", peft.VBLoRAConfig, {**_VB, "topk": 2}),
    *_both("vblora-topk", peft.VBLoRAConfig, {**_VB, "topk": 3, "save_only_topk_weights": True}),
    *_both("unilora", peft.UniLoraConfig, {"r": 3, "theta_d_length": 20, "save_indices": True}),
    Form("c3a", "linear", peft.C3AConfig, {"block_size": 2}, tolerance=_SINGLE, draw=_spread(3.0)),
    Form(
        "c3a-patterns",
        "mlp",
        peft.C3AConfig,
        {
            "block_size": 2,
            "block_size_pattern": {"0.lin": 4},
            "target_modules": ["0.lin", "1.lin"],
        },
        tolerance=_SINGLE,
        draw=_spread(3.0),
    ),
    # PEFT's forward reads the innermost weight and ignores the wrappers in between.
    Form("supertuning", "linear", peft.SupertuningConfig, _SUPER, nests=False),
    Form("supertuning-no_bias", "no_bias", peft.SupertuningConfig, _SUPER, nests=False),
    Form("supertuning-supra", "linear", peft.SupertuningConfig, {**_SUPER, "r": 3}, nests=False),
    *_both("waveft", peft.WaveFTConfig, _WAVE, reads=True),
    *(
        Form(
            f"waveft-{wavelet}",
            "linear",
            peft.WaveFTConfig,
            {**_WAVE, "wavelet_family": wavelet},
            reads=True,
        )
        for wavelet in _WAVELETS
    ),
    *_both("waveft-plain", peft.WaveFTConfig, {**_WAVE, "use_idwt": False}, reads=True),
    # PEFT allows no other adapter next to it, and computes the singular values in float32.
    Form(
        "kasa",
        "linear",
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "kasa_config": KasaConfig()},
        nests=False,
        tolerance=1e-5,
    ),
]
