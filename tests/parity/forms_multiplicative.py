"""Forms of PEFT's types that rotate, rescale or read a weight."""

import functools
from typing import Any

import peft

from jaxmix.families.peanut import ACTIVATIONS

from .nested import Form

__all__ = ["FORMS"]

_FAN_IN = {"fan_in_fan_out": True}


def _ia3() -> list[Form]:
    """Returns forms of IA3; PEFT can't wrap a wrapped convolution with it."""
    form = functools.partial(Form, config_class=peft.IA3Config)
    on_inputs, on_outputs = {"feedforward_modules": ["two"]}, {"feedforward_modules": []}
    not_nested: Any = {"is_nested": None}
    return [
        form("ia3-linear", "linear", options=on_inputs),
        form("ia3-outputs", "linear", options=on_outputs),
        form("ia3-regex", "linear", options={"feedforward_modules": "t.o|one"}),
        form("ia3-no_bias", "no_bias", options=on_inputs),
        form("ia3-gpt2", "gpt2", options={**on_inputs, **_FAN_IN}),
        form("ia3-gpt2_square", "gpt2_square", options={**on_inputs, **_FAN_IN}),
        form("ia3-conv2d", "conv2d", options=on_inputs, needs_base=True, **not_nested),
        form("ia3-conv2d_point", "conv2d_point", options=on_inputs, needs_base=True, **not_nested),
        form("ia3-conv2d_groups", "conv2d_groups", options=on_outputs, **not_nested),
        form("ia3-conv3d", "conv3d", options=on_inputs, needs_base=True, **not_nested),
    ]


def _boft() -> list[Form]:
    """Returns forms of BOFT; for convolutions PEFT ignores the wrappers inside."""
    form = functools.partial(Form, config_class=peft.BOFTConfig)
    by_number = {"boft_block_num": 2, "boft_block_size": 0}
    return [
        form("boft-linear", "linear", options={"boft_block_size": 4}),
        form("boft-by_number", "linear", options=by_number),
        form("boft-one_block", "no_bias", options={"boft_block_num": 1, "boft_block_size": 0}),
        form("boft-bias", "linear", options={"boft_block_size": 2, "bias": "all"}, is_nested=None),
        form("boft-conv2d", "conv2d_square", options={"boft_block_size": 3}, is_nested=False),
        form("boft-conv2d_point", "conv2d_point", options=by_number, is_nested=False),
    ]


def _hra() -> list[Form]:
    """Returns forms of HRA; PEFT multiplies the innermost weight and ignores the wrappers."""
    form = functools.partial(Form, config_class=peft.HRAConfig, is_nested=False)
    return [
        form("hra-linear", "linear", options={"r": 4}),
        form("hra-odd", "no_bias", options={"r": 3}),
        form("hra-apply_GS", "linear", options={"r": 4, "apply_GS": True}),
        form("hra-conv2d", "conv2d_square", options={"r": 4}),
        form("hra-conv2d-apply_GS", "conv2d_square", options={"r": 3, "apply_GS": True}),
        form("hra-conv2d_point", "conv2d_point", options={"r": 2}),
    ]


def _road() -> list[Form]:
    form = functools.partial(Form, config_class=peft.RoadConfig)
    return [
        *(
            form(f"{variant}-{net}", net, options={"variant": variant, "group_size": 2})
            for variant in ("road_1", "road_2", "road_4")
            for net in ("linear", "no_bias")
        ),
        *(
            form(f"{variant}-groups", "wide", options={"variant": variant, "group_size": 6})
            for variant in ("road_1", "road_2", "road_4")
        ),
    ]


def _miss() -> list[Form]:
    """Returns forms of MiSS; for *bat* PEFT ignores the wrappers inside."""
    form = functools.partial(Form, config_class=peft.MissConfig)
    bat = {"init_weights": "bat"}
    return [
        form("miss-linear", "linear", options={"r": 4}),
        form("miss-cut", "linear", options={"r": 5}),
        form("miss-random", "no_bias", options={"r": 3, "init_weights": False}),
        form("miss-mini", "linear", options={"r": 4, "init_weights": "mini", "mini_r": 2}),
        form("miss-mini-cut", "linear", options={"r": 5, "init_weights": "mini", "mini_r": 1}),
        form("miss-bat", "wide", options={"r": 6, **bat}, is_nested=False),
        form("miss-bat-small", "linear", options={"r": 2, **bat}, is_nested=False),
    ]


def _hira() -> list[Form]:
    """Returns forms of HiRA, for which PEFT ignores rank_pattern."""
    form = functools.partial(Form, config_class=peft.HiraConfig)
    nets = ("linear", "no_bias", "conv1d", "conv2d", "conv2d_point")
    return [
        form("hira-conv3d", "conv3d", options={"r": 3}, is_nested=None),
        *(form(f"hira-{net}", net, options={"r": 3}) for net in nets),
        form("hira-gpt2", "gpt2", options={"r": 3, **_FAN_IN}),
        form("hira-gpt2_square", "gpt2_square", options={"r": 3, **_FAN_IN}),
        form("hira-embedding", "embedding", options={"r": 3}),
        form("hira-embedding_square", "embedding_square", options={"r": 3}),
        form("hira-pattern", "linear", options={"r": 3, "rank_pattern": {"two": 2}}),
    ]


def _glora() -> list[Form]:
    """Returns forms of GLoRA; PEFT ignores the wrappers inside."""
    form = functools.partial(Form, config_class=peft.GloraConfig, is_nested=False)
    return [
        form("glora", "linear", options={"r": 3}),
        form("glora-no_bias", "no_bias", options={"r": 3}),
        *(
            form(
                f"glora-{ab}-{c}-{de}",
                "linear",
                options={"r": 2, "config_A_B": ab, "config_C": c, "config_D_E": de},
            )
            for ab in ("lora", "vector", "constant", "none")
            for c in ("lora", "vector", "none")
            for de in ("vector", "constant", "none")
            if (ab, c, de) != ("none", "none", "none")
        ),
    ]


def _deft() -> list[Form]:
    """Returns forms of DEFT, which PEFT computes in float32."""
    form = functools.partial(Form, config_class=peft.DeftConfig, tolerance=3e-6)
    qr = {"decomposition_method": "qr"}
    return [
        form("deft-linear", "linear", options={"r": 4}),
        form("deft-alpha", "no_bias", options={"r": 4, "alpha": 6}),
        form("deft-qr", "linear", options={"r": 4, "alpha": 6, **qr}),
        form("deft-qr-capped", "linear", options={"r": 8, "alpha": 6, **qr}),
        form("deft-para", "linear", options={"r": 3, "para": True}),
        form("deft-para-qr", "linear", options={"r": 3, "para": True, **qr}),
        form("deft-gpt2", "gpt2", options={"r": 3, **_FAN_IN}),
        form("deft-gpt2_square-qr", "gpt2_square", options={"r": 3, **qr, **_FAN_IN}),
    ]


def _peanut() -> list[Form]:
    form = functools.partial(Form, config_class=peft.PeanutConfig)
    return [
        form("peanut", "linear", options={"r": 3}),
        form("peanut-scaling", "no_bias", options={"r": 3, "scaling": 0.5, "act_fn": "gelu"}),
        *(
            form(
                f"peanut-{act}",
                "linear",
                options={"r": 3, "depth": 2, "act_fn": act},
                is_nested=True if act == "relu" else None,
            )
            for act in ACTIVATIONS
        ),
    ]


def _osf() -> list[Form]:
    """Returns forms of OSF, whose SVD PEFT computes in float32."""
    form = functools.partial(Form, config_class=peft.OSFConfig, needs_base=True, tolerance=3e-6)
    return [
        form("osf-linear", "linear"),
        form("osf-rank", "no_bias", options={"effective_rank": 5}),
        form("osf-fraction", "linear", options={"effective_rank": 0.75}),
        form("osf-pattern", "wide", options={"rank_pattern": {"two": 9}}),
    ]


def _frod() -> list[Form]:
    """Returns forms of FRoD; PEFT ignores the wrappers inside and stores U in float32."""
    form = functools.partial(Form, config_class=peft.FrodConfig, is_nested=False, tolerance=3e-6)
    frod = {"progressbar": False, "sparse_rate": 0.1}
    return [
        form("frod-linear", "linear", options=frod),
        form("frod-no_bias", "no_bias", options=frod),
        form("frod-none", "linear", options={**frod, "sparse_rate": 0.0}),
        form("frod-gpt2", "gpt2", options={**frod, **_FAN_IN}),
        form("frod-gpt2_square", "gpt2_square", options={**frod, **_FAN_IN}),
    ]


def _other_types() -> list[Form]:
    tokens: Any = {"target_modules": ["one"], "token_indices": [7, 0, 10]}
    return [
        Form("beft", "linear", peft.BeftConfig),
        Form("trainable_tokens", "embedding", peft.TrainableTokensConfig, tokens, is_nested=None),
        Form("ln_tuning-linear", "linear", peft.LNTuningConfig, is_nested=None),
        Form("ln_tuning-conv2d", "conv2d", peft.LNTuningConfig, is_nested=None),
    ]


FORMS = [
    *_ia3(),
    *_boft(),
    *_hra(),
    *_road(),
    *_miss(),
    *_hira(),
    *_glora(),
    *_deft(),
    *_peanut(),
    *_osf(),
    *_frod(),
    *_other_types(),
]
