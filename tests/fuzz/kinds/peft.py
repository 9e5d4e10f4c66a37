"""Adapters as PEFT saves them: a config and a file of tensors."""

import json
from typing import Any

from ..case import Adapter, Case
from ..tensorfile import Tensor, encoded, pack
from . import bases
from .bases import MODULES, drawn

__all__ = ["PEFT", "peft_files"]

_RANK = 2
_ABOUT = {
    "auto_mapping": None, "base_model_name_or_path": "base", "inference_mode": True,
    "peft_version": "0.18.0", "revision": None, "task_type": "CAUSAL_LM", "modules_to_save": None,
    "target_modules": ["q_proj", "k_proj", "down_proj"], "exclude_modules": None,
    "layers_to_transform": None, "layers_pattern": None,
}  # fmt: skip
_LORA = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 3, "lora_dropout": 0.0, "bias": "none",
    "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "lora_bias": False,
    "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True, "megatron_config": None,
    "megatron_core": "megatron.core", "layer_replication": None, "loftq_config": {},
}  # fmt: skip
_LYCORIS = {
    "r": 2, "alpha": 3, "rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False,
    "rank_pattern": {}, "alpha_pattern": {}, "init_weights": True,
}  # fmt: skip
_OFT = {
    "peft_type": "OFT", "r": 0, "oft_block_size": 2, "module_dropout": 0.0, "bias": "none",
    "fan_in_fan_out": False, "init_weights": True, "coft": False, "eps": 6e-05,
    "block_share": False, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
    "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
_ADALORA = {
    "peft_type": "ADALORA", "r": 8, "lora_alpha": 3, "lora_dropout": 0.0, "bias": "none",
    "fan_in_fan_out": False, "target_r": 2, "init_r": 2, "tinit": 0, "tfinal": 0, "deltaT": 1,
    "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "total_step": 10, "rank_pattern": None,
    "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
}  # fmt: skip
_IA3 = {
    "peft_type": "IA3", "feedforward_modules": ["down_proj"], "fan_in_fan_out": False,
    "init_ia3_weights": True,
}  # fmt: skip
_SHIRA = {
    "peft_type": "SHIRA", "r": 1, "mask_type": "random", "random_seed": 0, "fan_in_fan_out": False,
    "init_weights": True,
}  # fmt: skip


def _shapes(form: str, out: int, size: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of one module's factors."""
    lora = {"lora_A.weight": (rank, size), "lora_B.weight": (out, rank)}
    return {
        "lora": lora,
        "dora": {**lora, "lora_magnitude_vector": (out,)},
        "lora-bias": {**lora, "lora_B.bias": (out,)},
        "adalora": {"lora_A": (rank, size), "lora_B": (out, rank), "lora_E": (rank, 1)},
        "loha": {
            **{f"hada_w{i}_a": (out, rank) for i in "12"},
            **{f"hada_w{i}_b": (rank, size) for i in "12"},
        },
        "lokr": {"lokr_w1": (2, 2), "lokr_w2": (out // 2, size // 2)},
        "lokr-pairs": {
            "lokr_w1_a": (2, rank), "lokr_w1_b": (rank, 2),
            "lokr_w2_a": (out // 2, rank), "lokr_w2_b": (rank, size // 2),
        },
        "oft": {"oft_R.weight": (size // 2, 1)},
        "oft-wide": {"oft_R.weight": (size // 4, 6)},
        "shira": {"shira_weight": (out + size,), "shira_indices": (2, out + size)},
    }[form]  # fmt: skip


def _factors(form: str, site: str, rank: int = _RANK) -> dict[str, Tensor]:
    """Returns one module's factors."""
    out, size = MODULES[site]
    if form == "ia3":
        shape = (1, size) if "down_proj" in site else (out, 1)
        return {"ia3_l": encoded(1 + drawn(site + "l", *shape) / 4)}
    factors = {}
    for name, shape in _shapes(form, out, size, rank).items():
        numbers = drawn(f"{site}.{name}", *shape) * (0.3 if form.startswith("oft") else 0.7)
        if name == "lora_magnitude_vector":
            numbers = 1 + abs(numbers)
        factors[name] = encoded(numbers)
    if form == "shira":
        places = [(i % out, (i // out) % size) for i in range(out + size)]
        factors["shira_indices"] = encoded(list(zip(*places, strict=True)), "I32")
    return factors


def peft_files(
    form: str, folder: str = "adapter", dtype: str = "F32", extra: Any = None, **fields: Any
) -> dict[str, bytes]:
    """Returns an adapter's folder.

    Args:
        form: The form of the factors; see `_shapes`.
        folder: The folder to write to.
        dtype: The dtype of floats.
        extra: Other tensors, by key.
        **fields: of the config, beside the defaults.

    Returns:
        Two files.
    """
    settings = {
        "lora": _LORA, "dora": {**_LORA, "use_dora": True},
        "lora-bias": {**_LORA, "lora_bias": True},
        "adalora": _ADALORA, "loha": {"peft_type": "LOHA", **_LYCORIS},
        "lokr": {"peft_type": "LOKR", **_LYCORIS, "decompose_both": False, "decompose_factor": -1},
        "lokr-pairs": {
            "peft_type": "LOKR", **_LYCORIS, "decompose_both": True, "decompose_factor": 2,
        },
        "oft": _OFT, "oft-wide": {**_OFT, "oft_block_size": 4, "use_cayley_neumann": False},
        "ia3": _IA3, "shira": _SHIRA,
    }[form]  # fmt: skip
    settings = {**_ABOUT, **settings, **fields}
    tensors = {}
    for site in MODULES:
        if form == "lora-bias" and "q_proj" not in site:
            continue
        rank = 1 if fields.get("rank_pattern") and "k_proj" in site else _RANK
        for name, tensor in _factors(form, site, rank).items():
            if dtype != "F32" and tensor.dtype == "F32":
                tensor = encoded(tensor.numbers, dtype)
            tensors[f"base_model.model.{site}.{name}"] = tensor
    tensors |= extra or {}
    return {
        f"{folder}/adapter_config.json": json.dumps(settings, indent=2).encode(),
        f"{folder}/adapter_model.safetensors": pack(
            dict(sorted(tensors.items())), {"format": "pt"}
        ),
        f"{folder}/README.md": b"# An adapter",
    }


def _case(files: dict[str, bytes], base: dict[str, bytes], *adapters: Adapter, **more: Any) -> Case:
    adapters = adapters or (Adapter("peft", "adapter"),)
    return Case({**files, **base}, adapters, "base", **more)


def _stack(first: str, second: str) -> Case:
    files = {**peft_files(first, "one"), **peft_files(second, "two")}
    adapters = Adapter("peft", "one"), Adapter("peft", "two", 0.5 if "lo" in second else 1.0)
    return _case(files, bases.folder(), *adapters)


_SCORE = {"base_model.model.score.weight": encoded(drawn("saved", 3, 4))}
_TARGETS = r".*\.layers\.[01]\.(self_attn\.[qk]_proj|mlp\.down_proj)"
PEFT = {
    "peft-lora": lambda: _case(peft_files("lora"), bases.folder()),
    "peft-lora-bf16": lambda: _case(peft_files("lora", dtype="BF16"), bases.sharded()),
    "peft-lora-patterns": lambda: _case(
        peft_files(
            "lora",
            use_rslora=True,
            rank_pattern={"k_proj": 1},
            alpha_pattern={r"layers\.1\.self_attn\.q_proj": 5, "k_proj": 2.5},
            target_modules=_TARGETS,
            layers_to_transform=None,
        ),
        bases.folder("F16"),
    ),
    "peft-lora-saved": lambda: _case(
        peft_files("lora", extra=_SCORE, modules_to_save=["score"], layers_to_transform=[0, 1]),
        bases.sharded("F32"),
    ),
    "peft-lora-bias": lambda: _case(
        peft_files("lora-bias", target_modules=["q_proj"]), bases.folder()
    ),
    "peft-dora": lambda: _case(peft_files("dora"), bases.folder()),
    "peft-adalora": lambda: _case(peft_files("adalora"), bases.folder()),
    "peft-loha": lambda: _case(peft_files("loha"), bases.folder()),
    "peft-lokr": lambda: _case(peft_files("lokr"), bases.folder()),
    "peft-lokr-pairs": lambda: _case(peft_files("lokr-pairs"), bases.sharded("F32")),
    "peft-oft": lambda: _case(peft_files("oft"), bases.folder()),
    "peft-oft-wide": lambda: _case(
        peft_files("oft-wide", target_modules=["q_proj", "k_proj", "down_proj"]), bases.sharded()
    ),
    "peft-ia3": lambda: _case(peft_files("ia3"), bases.folder()),
    "peft-shira": lambda: _case(peft_files("shira"), bases.folder()),
    "peft-stack-lora-oft": lambda: _stack("lora", "oft"),
    "peft-stack-oft-loha": lambda: _stack("oft", "loha"),
    "base-fp8-tensor": lambda: _case(
        peft_files("lora"), bases.packed_folder("fp8-tensor"), dequantize=True
    ),
    "base-fp8-block": lambda: _case(
        peft_files("lora"), bases.packed_folder("fp8-block"), dequantize=True
    ),
    "base-mxfp4": lambda: _case(peft_files("oft"), bases.mxfp4_folder(), dequantize=True),
    "base-fp8-row": lambda: _case(
        peft_files("loha"), bases.packed_folder("fp8-row"), dequantize=True
    ),
}
