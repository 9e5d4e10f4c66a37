"""A table for `jaxmix.init`: the options of each kind, and whether it starts at the base."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["PARAMS", "ROWS", "Row"]


def _normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# PyTorch's names and shapes; "gpt" is GPT-2's Conv1D, as its bias shows.
PARAMS: dict[str, Any] = {
    "conv.bias": _normal(1, 16),
    "conv.weight": _normal(2, 16, 8, 3, 3),
    "conv1.weight": _normal(3, 16, 8, 3),
    "emb.weight": _normal(4, 48, 24),
    "gpt.bias": _normal(5, 48),
    "gpt.weight": _normal(6, 24, 48),
    "lin.bias": _normal(7, 48),
    "lin.weight": _normal(8, 48, 24),
    "more.wide.weight": _normal(9, 24, 36),
    "norm.bias": _normal(10, 24),
    "norm.weight": _normal(11, 24),
}


@dataclass(frozen=True)
class Row:
    """One form of a kind.

    Args:
        kind: Its name.
        options: Its keyword arguments.
        targets: The targeted modules.
        changes_base: Why it changes the base at the start, or "" if it does not.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("lin",)
    changes_base: str = ""

    def __str__(self) -> str:
        options = (f"{name}={value}" for name, value in self.options.items())
        return " ".join((self.kind, *options, *self.targets)).replace("(", "").replace(")", "")


_ALL_RANDOM = "PEFT draws all of its arrays"
_ALL_LAYERS = ("lin", "gpt", "conv", "emb")
_LINEAR_AND_GPT = ("lin", "gpt")

ROWS = (
    Row("lora", {"rank": 4, "alpha": 6}, _ALL_LAYERS),
    Row("lora", {"rank": 4, "use_rslora": True, "lora_bias": True}),
    Row("lora", {"init_lora_weights": "gaussian", "rank": 4}, _LINEAR_AND_GPT),
    Row("lora", {"rank_pattern": {"lin": 3}, "alpha_pattern": {"gpt": 5}}, _LINEAR_AND_GPT),
    Row("lora", {"init_lora_weights": "pissa", "rank": 4}, _LINEAR_AND_GPT),
    Row("lora", {"init_lora_weights": "olora", "rank": 4}),
    Row("dora", {"rank": 4, "alpha": 6}, _ALL_LAYERS),
    Row("dora", {"rank": 4, "init_lora_weights": "pissa"}, _LINEAR_AND_GPT),
    Row("dora", {"rank": 4, "init_lora_weights": "olora", "use_rslora": True}),
    Row("dora", {"rank": 4, "init_lora_weights": "gaussian"}, _ALL_LAYERS),
    Row("adalora", {"rank": 6, "alpha": 5}, ("lin", "gpt", "conv")),
    Row("adalora", {"alpha": -1}),
    Row("kasa", {"rank": 4}, changes_base="it removes the base's smallest singular values"),
    Row("hira", {"rank": 4}, _ALL_LAYERS),
    Row("hira", {"rank": 4, "init_weights": "gaussian"}),
    Row("loha", {"rank": 3, "alpha": 5}, ("lin", "conv", "conv1")),
    Row("loha", {"rank": 3, "use_effective_conv2d": True}, ("lin", "conv", "conv1")),
    Row("lokr", {"rank": 2, "alpha": 3}, ("lin", "conv", "conv1")),
    Row("lokr", {"rank": 8}, ("lin", "conv")),
    Row("lokr", {"rank": 1, "decompose_both": True, "decompose_factor": 4}, ("lin", "more.wide")),
    Row("lokr", {"rank": 1, "use_effective_conv2d": True}, ("lin", "conv")),
    Row("lokr", {"rank": 1, "init_weights": "lycoris"}, ("lin", "conv")),
    Row("lokr", {"rank": 9, "init_weights": "lycoris"}),
    Row("oft", {"oft_block_size": 4}, ("lin", "conv", "emb")),
    Row("oft", {"rank": 5}, ("lin",)),
    Row("oft", {"oft_block_size": 7, "coft": True, "block_share": True}, ("more.wide",)),
    Row("oft", {"use_cayley_neumann": False}),
    Row("boft", {"boft_block_size": 4}, ("lin", "conv")),
    Row("boft", {"boft_block_size": 0, "boft_block_num": 6}),
    Row("hra", {"rank": 4}, ("lin", "conv")),
    Row("hra", {"rank": 4, "apply_GS": True}, changes_base="PEFT makes equal vectors orthogonal"),
    Row("hra", {"rank": 3}, changes_base="an odd number of reflections is not the identity"),
    Row("road", {"group_size": 8}),
    Row("road", {"group_size": 16, "variant": "road_2"}),
    Row("road", {"group_size": 8, "variant": "road_4"}),
    Row("ia3", {"feedforward_modules": ["lin"]}, ("lin", "gpt", "conv")),
    Row("ia3", {"feedforward_modules": ".*conv"}, ("conv",)),
    Row("psoft", {"rank": 4, "alpha": 6}),
    Row("psoft", {"rank": 4, "psoft_orth": False, "ab_svd_init": "pissa_init"}),
    Row("psoft", {"rank": 4, "use_cayley_neumann": True, "psoft_mag_a": False}),
    Row("shira", {"rank": 3}),
    Row("fourierft", {"n_frequency": 40, "init_weights": True}, _LINEAR_AND_GPT),
    Row("fourierft", {"n_frequency": 400, "scaling": 2.0}, changes_base=_ALL_RANDOM),
    Row("waveft", {"n_frequency": 40, "wavelet_family": "db2"}, _LINEAR_AND_GPT),
    Row("waveft", {"n_frequency": 40, "use_idwt": False}),
    Row("c3a", {"block_size": 12}, changes_base=_ALL_RANDOM),
    Row("c3a", {"block_size": 12, "init_weights": "gaussian"}, changes_base=_ALL_RANDOM),
    Row("c3a", {"block_size": 12, "init_weights": "kaiming_uniform"}, changes_base=_ALL_RANDOM),
    Row("c3a", {"block_size": 6, "init_weights": True}),
    Row("supertuning", {"sparsity": 0.9}),
    Row("supertuning", {"sparsity": 0.9, "select_top": False, "rank": 4}),
    Row("vera", {"rank": 8}, ("lin", "gpt", "more.wide")),
    Row("pvera", {"rank": 8, "d_initial": 0.2}, ("lin", "more.wide")),
    Row("randlora", {"rank": 5}, ("lin", "gpt", "more.wide")),
    Row(
        "vblora",
        {"rank": 4, "num_vectors": 16, "vector_length": 12},
        ("lin", "gpt"),
        changes_base=_ALL_RANDOM,
    ),
    Row("unilora", {"rank": 3, "theta_d_length": 500}, ("lin", "gpt"), changes_base=_ALL_RANDOM),
    Row("tinylora", {"rank": 3, "u": 5}, ("lin", "emb")),
    Row(
        "tinylora",
        {"weight_tying": 1.0, "init_weights": "uniform"},
        ("lin", "gpt"),
        changes_base=_ALL_RANDOM,
    ),
    Row("delora", {"rank": 4, "delora_lambda": 12}),
    Row("gralora", {"rank": 4, "hybrid_r": 3}, _LINEAR_AND_GPT),
    Row("gralora", {"rank": 6, "gralora_k": 3, "alpha": 5}),
    Row("miss", {"rank": 5}),
    Row("miss", {"rank": 12, "init_weights": "bat"}),
    Row("miss", {"rank": 5, "init_weights": "mini", "mini_r": 4}),
    Row("peanut", {"rank": 6, "depth": 2, "act_fn": "gelu", "scaling": 2.0}),
    Row("glora", {"rank": 4}, ("lin", "more.wide")),
    Row("glora", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    Row("glora", {"config_A_B": "constant", "config_C": "none", "config_D_E": "none"}),
    Row("deft", {"rank": 4, "alpha": 6}, _LINEAR_AND_GPT),
    Row("deft", {"rank": 4, "decomposition_method": "qr"}),
    Row("deft", {"rank": 4, "para": True}, changes_base="PaRa removes a subspace"),
    Row("osf", {"effective_rank": 20}),
    Row("frod", {"sparse_rate": 0.05}, ("lin", "gpt", "more.wide")),
    Row("frod", {"sparse_rate": 0.0, "regularization_alpha": 0.1}),
    Row("adamss", {"rank": 6, "num_subspaces": 3, "subspace_rank": 2}, ("lin", "more.wide")),
    Row("adamss", {"rank": 8, "subspace_rank": 4, "use_dynamic_rank": True, "random_seed": 5}),
    Row("beft"),
    Row("ln_tuning", {}, ("norm", "lin")),
    Row("trainable_tokens", {"token_indices": [3, 40]}, ("emb",)),
)
