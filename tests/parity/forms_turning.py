"""Forms of PEFT's types that rotate, rescale or read a weight."""

import functools
from typing import Any

import peft

from jaxmix.families.peanut import ACTIVATIONS

from .nested import Form

__all__ = ["FORMS"]

_FAN = {"fan_in_fan_out": True}


def _ia3() -> list[Form]:
    """PEFT's IA3 does not wrap a wrapped convolution."""
    form = functools.partial(Form, make=peft.IA3Config)
    inputs, outputs = {"feedforward_modules": ["two"]}, {"feedforward_modules": []}
    alone: Any = {"nests": None}
    return [
        form("ia3-linear", "linear", options=inputs),
        form("ia3-outputs", "linear", options=outputs),
        form("ia3-regex", "linear", options={"feedforward_modules": "t.o|one"}),
        form("ia3-no_bias", "no_bias", options=inputs),
        form("ia3-gpt2", "gpt2", options={**inputs, **_FAN}),
        form("ia3-gpt2_square", "gpt2_square", options={**inputs, **_FAN}),
        form("ia3-conv2d", "conv2d", options=inputs, reads=True, **alone),
        form("ia3-conv2d_point", "conv2d_point", options=inputs, reads=True, **alone),
        form("ia3-conv2d_groups", "conv2d_groups", options=outputs, **alone),
        form("ia3-conv3d", "conv3d", options=inputs, reads=True, **alone),
    ]


def _boft() -> list[Form]:
    """On a convolution PEFT rotates the innermost weight, below all wrappers."""
    form = functools.partial(Form, make=peft.BOFTConfig)
    by_number = {"boft_block_num": 2, "boft_block_size": 0}
    return [
        form("boft-linear", "linear", options={"boft_block_size": 4}),
        form("boft-by_number", "linear", options=by_number),
        form("boft-one_block", "no_bias", options={"boft_block_num": 1, "boft_block_size": 0}),
        form("boft-bias", "linear", options={"boft_block_size": 2, "bias": "all"}, nests=None),
        form("boft-conv2d", "conv2d_square", options={"boft_block_size": 3}, nests=False),
        form("boft-conv2d_point", "conv2d_point", options=by_number, nests=False),
    ]


def _hra() -> list[Form]:
    """PEFT's forward multiplies the innermost weight, below all wrappers."""
    form = functools.partial(Form, make=peft.HRAConfig, nests=False)
    return [
        form("hra-linear", "linear", options={"r": 4}),
        form("hra-odd", "no_bias", options={"r": 3}),
        form("hra-apply_GS", "linear", options={"r": 4, "apply_GS": True}),
        form("hra-conv2d", "conv2d_square", options={"r": 4}),
        form("hra-conv2d-apply_GS", "conv2d_square", options={"r": 3, "apply_GS": True}),
        form("hra-conv2d_point", "conv2d_point", options={"r": 2}),
    ]


def _road() -> list[Form]:
    form = functools.partial(Form, make=peft.RoadConfig)
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
    """PEFT's forward of *bat* starts from the innermost weight, below all wrappers."""
    form = functools.partial(Form, make=peft.MissConfig)
    bat = {"init_weights": "bat"}
    return [
        form("miss-linear", "linear", options={"r": 4}),
        form("miss-cut", "linear", options={"r": 5}),
        form("miss-random", "no_bias", options={"r": 3, "init_weights": False}),
        form("miss-mini", "linear", options={"r": 4, "init_weights": "mini", "mini_r": 2}),
        form("miss-mini-cut", "linear", options={"r": 5, "init_weights": "mini", "mini_r": 1}),
        form("miss-bat", "wide", options={"r": 6, **bat}, nests=False),
        form("miss-bat-small", "linear", options={"r": 2, **bat}, nests=False),
    ]


def _hira() -> list[Form]:
    """PEFT uses one rank for all layers and ignores rank_pattern."""
    form = functools.partial(Form, make=peft.HiraConfig)
    nets = ("linear", "no_bias", "conv1d", "conv2d", "conv2d_point")
    return [
        form("hira-conv3d", "conv3d", options={"r": 3}, nests=None),
        *(form(f"hira-{net}", net, options={"r": 3}) for net in nets),
        form("hira-gpt2", "gpt2", options={"r": 3, **_FAN}),
        form("hira-gpt2_square", "gpt2_square", options={"r": 3, **_FAN}),
        form("hira-embedding", "embedding", options={"r": 3}),
        form("hira-embedding_square", "embedding_square", options={"r": 3}),
        form("hira-pattern", "linear", options={"r": 3, "rank_pattern": {"two": 2}}),
    ]


def _glora() -> list[Form]:
    """PEFT's forward subtracts the wrapped layers' output and starts from the innermost weight."""
    form = functools.partial(Form, make=peft.GloraConfig, nests=False)
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
    """PEFT computes in float32."""
    form = functools.partial(Form, make=peft.DeftConfig, tolerance=3e-6)
    qr = {"decomposition_method": "qr"}
    return [
        form("deft-linear", "linear", options={"r": 4}),
        form("deft-alpha", "no_bias", options={"r": 4, "alpha": 6}),
        form("deft-qr", "linear", options={"r": 4, "alpha": 6, **qr}),
        form("deft-qr-capped", "linear", options={"r": 8, "alpha": 6, **qr}),
        form("deft-para", "linear", options={"r": 3, "para": True}),
        form("deft-para-qr", "linear", options={"r": 3, "para": True, **qr}),
        form("deft-gpt2", "gpt2", options={"r": 3, **_FAN}),
        form("deft-gpt2_square-qr", "gpt2_square", options={"r": 3, **qr, **_FAN}),
    ]


def _peanut() -> list[Form]:
    form = functools.partial(Form, make=peft.PeanutConfig)
    return [
        form("peanut", "linear", options={"r": 3}),
        form("peanut-scaling", "no_bias", options={"r": 3, "scaling": 0.5, "act_fn": "gelu"}),
        *(
            form(
                f"peanut-{act}",
                "linear",
                options={"r": 3, "depth": 2, "act_fn": act},
                nests=True if act == "relu" else None,
            )
            for act in ACTIVATIONS
        ),
    ]


def _osf() -> list[Form]:
    """PEFT computes the SVD in float32."""
    form = functools.partial(Form, make=peft.OSFConfig, reads=True, tolerance=3e-6)
    return [
        form("osf-linear", "linear"),
        form("osf-rank", "no_bias", options={"effective_rank": 5}),
        form("osf-fraction", "linear", options={"effective_rank": 0.75}),
        form("osf-pattern", "wide", options={"rank_pattern": {"two": 9}}),
    ]


def _frod() -> list[Form]:
    """PEFT's forward reassembles the weight, whatever it wraps, and stores U in float32."""
    form = functools.partial(Form, make=peft.FrodConfig, nests=False, tolerance=3e-6)
    plain = {"progressbar": False, "sparse_rate": 0.1}
    return [
        form("frod-linear", "linear", options=plain),
        form("frod-no_bias", "no_bias", options=plain),
        form("frod-none", "linear", options={**plain, "sparse_rate": 0.0}),
        form("frod-gpt2", "gpt2", options={**plain, **_FAN}),
        form("frod-gpt2_square", "gpt2_square", options={**plain, **_FAN}),
    ]


def _others() -> list[Form]:
    tokens: Any = {"target_modules": ["one"], "token_indices": [7, 0, 10]}
    return [
        Form("beft", "linear", peft.BeftConfig),
        Form("trainable_tokens", "embedding", peft.TrainableTokensConfig, tokens, nests=None),
        Form("ln_tuning-linear", "linear", peft.LNTuningConfig, nests=None),
        Form("ln_tuning-conv2d", "conv2d", peft.LNTuningConfig, nests=None),
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
    *_others(),
]
