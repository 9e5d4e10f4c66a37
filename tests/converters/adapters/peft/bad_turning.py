"""Invalid files of the types that rotate or read a weight, with their errors."""

from collections.abc import Mapping
from typing import Any

from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError

__all__ = ["BAD", "PSOFT"]

S, C, U = ShapeError, CheckpointError, UnsupportedError
_GLORA = {f"glora_{name}.zeros": (1,) for name in "BCDE"}
_HRA = {"r": 2, "apply_GS": False}
_ROAD = {"variant": "road_1", "group_size": 4}
PSOFT = {"r": 2, "psoft_alpha": 4, "psoft_mag_a": False, "psoft_mag_b": False}
_PEANUT = {"r": 2, "depth": 1, "scaling": 1.0, "act_fn": "relu"}
_LEVELS = {"peanut_encoders.0.weight": (2, 2), "peanut_decoders.0.weight": (2, 2)}
_DEFT = {"r": 2, "para": False}

# A type, its config, its tensors' shapes, the error's class and a part of its text.
BAD: dict[str, tuple[str, Mapping[str, Any], Mapping[str, tuple[int, ...]], Any, str]] = {
    "ia3 along no axis": (
        "IA3",
        {"feedforward_modules": []},
        {"ia3_l": (6, 4)},
        S,
        "ia3_l has shape (6, 4), expected (n, 1), or (1, n, 1, …): it scales outputs",
    ),
    "ia3 across": (
        "IA3",
        {"feedforward_modules": ["proj"]},
        {"ia3_l": (6, 1)},
        S,
        "ia3_l has shape (6, 1), expected (1, n), or (1, n, 1, …): it scales inputs",
    ),
    "ia3 of a convolution without modules": (
        "IA3",
        {},
        {"ia3_l": (1, 6, 1, 1)},
        C,
        "the config has no feedforward_modules, which determine whether a "
        "convolution's ia3_l scales inputs or outputs. Set them, to [] if there are "
        "none",
    ),
    "ia3 of no modules": (
        "IA3",
        {"feedforward_modules": 3},
        {"ia3_l": (6, 1)},
        C,
        "feedforward_modules is 3, expected a regular expression or a list of module names",
    ),
    "ia3 of an expression that is none": (
        "IA3",
        {"feedforward_modules": "("},
        {"ia3_l": (6, 1)},
        C,
        'feedforward_modules is "(", expected a regular expression or a list of module names',
    ),
    "boft": (
        "BOFT",
        {},
        {"boft_R": (1, 2, 2, 3), "boft_s": (6, 1)},
        S,
        "boft_R (1, 2, 2, 3), boft_s (6, 1), expected (factors, blocks, b, b) and (out, 1)",
    ),
    "boft of odd blocks": (
        "BOFT",
        {},
        {"boft_R": (2, 2, 3, 3), "boft_s": (6, 1)},
        S,
        "boft_R has shape (2, 2, 3, 3): 2 butterfly factors need blocks of even "
        "size, and the number of blocks must be a multiple of 2",
    ),
    "hra": (
        "HRA",
        _HRA,
        {"hra_u": (4, 3)},
        S,
        "hra_u has shape (4, 3), expected (in, 2) by the config's r",
    ),
    "road": (
        "ROAD",
        _ROAD,
        {"road_theta": (3,), "road_alpha": (3,)},
        S,
        "road_alpha (3,), road_theta (3,), expected (n,) each with n a multiple of 2",
    ),
    "road of odd groups": (
        "ROAD",
        {**_ROAD, "group_size": 3},
        {"road_theta": (3,), "road_alpha": (3,)},
        C,
        "group_size is 3, expected a positive even integer",
    ),
    "tokens": (
        "TRAINABLE_TOKENS",
        {"token_indices": [1, 2]},
        {"trainable_tokens_delta": (3, 4)},
        S,
        "trainable_tokens_delta has shape (3, 4), expected (2, D) by the config's token_indices",
    ),
    "tokens twice": (
        "TRAINABLE_TOKENS",
        {"token_indices": [1, 1]},
        {"trainable_tokens_delta": (2, 4)},
        C,
        "token_indices is [1, 1], expected a list of non-negative integers without duplicates",
    ),
    "miss": (
        "MISS",
        {"r": 2},
        {"miss_block": (3, 6)},
        S,
        "miss_block has shape (3, 6), expected (2, out) by the config's r and init_weights = null",
    ),
    "miss bat": (
        "MISS",
        {"r": 2, "init_weights": "bat"},
        {"miss_block": (2, 6)},
        S,
        'expected (·, 2, 2) by the config\'s r and init_weights = "bat"',
    ),
    "miss mini": (
        "MISS",
        {"r": 2, "mini_r": 3, "init_weights": "mini"},
        {"miss_block": (2, 6)},
        S,
        "miss_block has shape (2, 6), expected (2, 3) by",
    ),
    "miss of an unknown form": (
        "MISS",
        {"r": 2, "init_weights": "max"},
        {"miss_block": (2, 6)},
        U,
        "init_weights = 'max': unknown, expected true, false, 'bat' or 'mini'",
    ),
    "bone": (
        "BONE",
        {"r": 2},
        {"bone_block": (3, 6)},
        S,
        "bone_block has shape (3, 6), expected (2, out)",
    ),
    "hira": (
        "HIRA",
        {},
        {"hira_A": (2, 4, 3), "hira_B": (6, 2, 3)},
        S,
        "hira_B has shape (6, 2, 3), expected (out, 2, 1, …)",
    ),
    "glora": (
        "GLORA",
        {"r": 2},
        {**_GLORA, "glora_A.Xd": (6, 3), "glora_A.Xu": (3, 4)},
        S,
        "glora_A.Xd (6, 3), glora_A.Xu (3, 4), expected (·, 2) and (2, ·) by the config",
    ),
    "glora of half a path": (
        "GLORA",
        {"r": 2},
        {**_GLORA, "glora_A.Xd": (6, 2)},
        C,
        "glora_A.Xd (6, 2): expected glora_A.Xd and glora_A.Xu, glora_A.X, or zeros in "
        "glora_A.zeros",
    ),
    "glora of no path": (
        "GLORA",
        {"r": 2},
        _GLORA,
        C,
        "no glora_A: expected glora_A.Xd and glora_A.Xu",
    ),
    "beft": (
        "BEFT",
        {},
        {"beft_bias": (6, 1)},
        S,
        "beft_bias has shape (6, 1), expected (1, out)",
    ),
    "psoft": (
        "PSOFT",
        PSOFT,
        {"psoft_R.weight": (2, 2)},
        S,
        "psoft_R.weight has shape (2, 2), expected (1,) by r",
    ),
    "psoft without a vector": (
        "PSOFT",
        {**PSOFT, "psoft_mag_a": True},
        {"psoft_R.weight": (1,)},
        C,
        "psoft_R.vector_a is missing, but psoft_mag_a is true in the config",
    ),
    "psoft with another vector": (
        "PSOFT",
        {**PSOFT, "psoft_mag_b": True},
        {"psoft_R.weight": (1,), "psoft_R.vector_b": (3,)},
        S,
        "psoft_R.vector_b (3,), expected (2,) by the config's r",
    ),
    "osf": (
        "OSF",
        {},
        {
            "osf_svd_params.U_low": (6, 2),
            "osf_svd_params.S_low": (3,),
            "osf_svd_params.V_low": (2, 4),
        },
        S,
        "osf_svd_params.U_low (6, 2), osf_svd_params.V_low (2, 4), expected (out, k), (k,) and "
        "(k, in)",
    ),
    "deft": (
        "DEFT",
        _DEFT,
        {"deft_P": (6, 3), "deft_R": (3, 4)},
        S,
        "deft_P has shape (6, 3), expected (out, 2) by the config's r",
    ),
    "deft of two ranks": (
        "DEFT",
        _DEFT,
        {"deft_P": (6, 2), "deft_R": (3, 4)},
        S,
        "deft_R has shape (3, 4), expected (2, in) by its r",
    ),
    "deft that is no PaRa": (
        "DEFT",
        _DEFT,
        {"deft_P": (6, 2)},
        C,
        "deft_R is missing, but para is false in the config",
    ),
    "peanut": (
        "PEANUT",
        _PEANUT,
        {"peanut_A.weight": (2, 6), "peanut_B.weight": (6, 3), **_LEVELS},
        S,
        "expected (2, out), (out, 2) and (2, 2)",
    ),
    "peanut that is deeper": (
        "PEANUT",
        {**_PEANUT, "depth": 0},
        {"peanut_A.weight": (2, 6), "peanut_B.weight": (6, 2), **_LEVELS},
        S,
        "expected 0 encoders and decoders by the config's depth",
    ),
    "peanut of another activation": (
        "PEANUT",
        {**_PEANUT, "act_fn": "xielu"},
        {"peanut_A.weight": (2, 6), "peanut_B.weight": (6, 2), **_LEVELS},
        C,
        "act_fn is \"xielu\", expected 'gelu' or ",
    ),
    "frod without its bases": (
        "FROD",
        {},
        {"frod_lambda_l": (4,), "frod_lambda_s_values": (2,)},
        C,
        "frod_V.layer_proj, frod_s_indices.layer_proj, frod_s_size.layer_proj "
        "missing, which all modules of its category share",
    ),
    "frod that leaves them out": (
        "FROD",
        {"save_projection": False},
        {"frod_lambda_l": (4,), "frod_lambda_s_values": (2,)},
        U,
        "save_projection = false: the file leaves out the bases V",
    ),
}
