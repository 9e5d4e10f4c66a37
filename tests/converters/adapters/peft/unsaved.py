"""Folders of PEFT's types that omit something, or that jaxmix does not write.

All of them adapt one site, `folders.SITE`, whose weight is (6, 4) unless the form states otherwise.
"""

import numpy as np

from .folders import Form

__all__ = ["COMMON", "UNSAVED"]

_FREQUENCIES = {"n_frequency": 5, "scaling": 2.0, "random_loc_seed": 777}
_VERA = {"r": 2, "projection_prng_key": 7, "save_projection": False}
_PSOFT = {"r": 2, "psoft_alpha": 4, "num_cayley_neumann_terms": 5, "random_seed": 0}
_TURNED = {"psoft_R.weight": (1,), "psoft_R.vector_a": (2,), "psoft_R.vector_b": (2,)}
_LORA = {"lora_A.weight": (2, 4), "lora_B.weight": (6, 2)}

# Tensors of the whole model, by the beginning of a form's name.
COMMON = {
    "tinylora": {"base_model.tinylora_v.0": np.array([0.5, -1.0, 2.0], np.float32)},
    "unilora": {"base_model.unilora_theta_d": np.linspace(-1, 1, 5, dtype=np.float32)},
}

UNSAVED: dict[str, Form] = {
    "adamss": Form(
        "ADAMSS",
        {"r": 4, "num_subspaces": 1, "subspace_rank": 2, "random_seed": 123},
        {"adamss_A.0": (2, 4), "adamss_B.0": (6, 2), "adamss_newB": (4, 4)},
        bias=False,
    ),
    "bone": Form("BONE", {"r": 2, "init_weights": True}, {"bone_block": (2, 6)}),
    "miss-mini": Form(
        "MISS", {"r": 2, "init_weights": "mini", "mini_r": 3}, {"miss_block": (2, 3)}
    ),
    "fourierft": Form("FOURIERFT", _FREQUENCIES, {"fourierft_spectrum": (5,)}),
    "waveft": Form(
        "WAVEFT",
        {**_FREQUENCIES, "use_idwt": True, "wavelet_family": "db1"},
        {"waveft_spectrum": (5,)},
    ),
    "osf": Form(
        "OSF",
        {"effective_rank": 2},
        {
            "osf_svd_params.U_low": (6, 2),
            "osf_svd_params.S_low": (2,),
            "osf_svd_params.V_low": (2, 4),
        },
        bias=False,
    ),
    "pissa": Form("LORA", {"r": 2, "lora_alpha": 3, "init_lora_weights": "pissa"}, _LORA),
    "bdlora": Form(
        "LORA",
        {
            "r": 2,
            "lora_alpha": 3,
            "use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["proj"]},
        },
        {"lora_A.weight": (2, 2), "lora_B.weight": (6, 2)},
    ),
    "qalora": Form(
        "LORA",
        {"r": 2, "lora_alpha": 3, "use_qalora": True, "qalora_group_size": 2},
        {"lora_A.weight": (2, 2), "lora_B.weight": (6, 2)},
    ),
    "psoft": Form("PSOFT", {**_PSOFT, "use_cayley_neumann": True}, _TURNED, bias=False),
    "psoft-lowrank": Form(
        "PSOFT",
        {**_PSOFT, "psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 2},
        _TURNED,
        bias=False,
    ),
    "pvera": Form("PVERA", _VERA, {"pvera_lambda_b": (6,), "pvera_lambda_d": (4,)}),
    "randlora": Form(
        "RANDLORA",
        {**_VERA, "randlora_alpha": 3},
        {"randlora_lambda": (2, 2), "randlora_gamma": (2, 4)},
    ),
    "shira": Form("SHIRA", {"r": 1}, {"shira_weight": (5,), "shira_indices": (2, 5)}),
    "supertuning": Form(
        "SUPERTUNING",
        {"r": 2, "lora_alpha": 3, "sparsity": 0.8, "save_precomputed_indices": False},
        {
            "supertuning_values": (5,),
            "supertuning_lora_A.weight": (2, 4),
            "supertuning_lora_B.weight": (6, 2),
        },
    ),
    "tinylora": Form(
        "TINYLORA",
        {"r": 2, "u": 3, "projection_seed": 42, "save_projection": False, "weight_tying": 0.0},
        {"tinylora_A": (2, 4), "tinylora_B": (6, 2)},
    ),
    "unilora": Form(
        "UNILORA",
        {
            "r": 2,
            "theta_d_length": 5,
            "save_indices": False,
            "proj_seed": 42,
            "target_modules": ["proj"],
        },
        {},
    ),
    "vera": Form("VERA", _VERA, {"vera_lambda_b": (6,), "vera_lambda_d": (2,)}),
}
