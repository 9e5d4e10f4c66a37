"""Forms of PEFT's types for tests of gradients, and what limits the agreement with PEFT."""

from typing import Any

import peft

from ..parity.forms import FORMS
from ..parity.nested import Form

__all__ = ["CASES", "CONSTANT_IN_PEFT", "FLOAT32"]

_BY_NAME = {form.name: form for form in FORMS}
_LORA: dict[str, Any] = {"r": 3, "lora_alpha": 5}
_FOURIER: dict[str, Any] = {"n_frequency": 20, "scaling": 30.0}
_OFT: dict[str, Any] = {"oft_block_size": 4}

CASES: tuple[Form, ...] = (
    Form("lora", "linear", peft.LoraConfig, {**_LORA, "lora_bias": True}),
    Form("dora", "linear", peft.LoraConfig, {**_LORA, "use_dora": True}),
    Form("adalora", "linear", peft.AdaLoraConfig, {"init_r": 3, "total_step": 10}),
    Form("loha", "linear", peft.LoHaConfig, {"r": 2, "alpha": 3}),
    Form("lokr", "linear", peft.LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True}),
    Form("oft", "linear", peft.OFTConfig, _OFT),
    Form("oft-cayley", "linear", peft.OFTConfig, {**_OFT, "use_cayley_neumann": False}),
    Form("oft-coft", "linear", peft.OFTConfig, {**_OFT, "coft": True, "eps": 1.0}),
    Form("shira", "linear", peft.ShiraConfig, {"r": 2}),
    Form("vera", "linear", peft.VeraConfig, {"r": 3}),
    Form("pvera", "linear", peft.PveraConfig, {"r": 3}),
    Form("randlora", "linear", peft.RandLoraConfig, {"r": 3}),
    Form("tinylora", "linear", peft.TinyLoraConfig, {"r": 2, "u": 5, "weight_tying": 1.0}),
    Form("fourierft", "linear", peft.FourierFTConfig, _FOURIER, needs_base=True),
    Form("adamss", "linear", peft.AdamssConfig, {"r": 4}, needs_base=True),
    Form("psoft", "linear", peft.PsoftConfig, {"r": 3}, needs_base=True),
    *(
        _BY_NAME[name]
        for name in (
            "delora", "gralora-hybrid-linear", "vblora-linear", "unilora-linear", "c3a",
            "supertuning-supra", "waveft-linear", "kasa", "ia3-linear", "boft-bias", "hra-linear",
            "hra-apply_GS", "road_4-linear", "miss-mini", "miss-bat-small", "hira-linear",
            "glora", "deft-qr", "peanut-gelu", "frod-linear", "beft", "ln_tuning-linear",
        )
    ),
)  # fmt: skip

# PEFT computes these in float32, whatever its input's dtype.
FLOAT32 = {"c3a", "kasa", "deft-qr", "frod-linear", "fourierft", "psoft"}

# Values that PEFT treats as constants, and jaxmix does not.
CONSTANT_IN_PEFT = {
    "dora": "the norm of W₀ + γBA is a constant for its gradient",
    "oft-coft": "the forward shrinks the numbers in place, so the gradient ignores the shrinking",
}
