"""Writes flax457.zip: adapters composed into the params of transformers 4.57's Flax models (Linen).

It takes two steps, because these models are no longer maintained and need an environment of their
own:

    python -m tests.goldens.flax457 peft DIR     with torch, peft and transformers 5
    python -m tests.goldens.flax457 flax DIR     with transformers==4.57.6, flax and jax

The first step draws a tiny BERT, a tiny GPT-2 and adapters for each, and records PEFT's outputs for
the nested, unmerged adapters. The second step loads the same weights into the Flax models, composes
the adapters into their params with jaxmix, and records the params and the models' outputs.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from .archive import pack

__all__ = ["main"]

BERT = {
    "model_type": "bert",
    "vocab_size": 23,
    "max_position_embeddings": 12,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 18,
    "hidden_act": "gelu",
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 23,
    "n_positions": 12,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 18,
    "activation_function": "gelu_new",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {"bert": BERT, "gpt2": GPT2}
STACKS = {"bert": ("lora", "loha", "ia3", "oft"), "gpt2": ("dora", "ia3", "hira")}
MASK = np.arange(9)[None] < np.array([[9], [6]])


def adapters(kind: str) -> dict[str, Any]:
    """Returns PEFT's configs: square and non-square layers, weights and biases."""
    import peft

    if kind == "bert":
        both = ["key", "value", "output.dense"]
        return {
            "lora": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["query", "value"]),
            "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=["intermediate.dense", "query"]),
            "ia3": peft.IA3Config(target_modules=both, feedforward_modules=["output.dense"]),
            "oft": peft.OFTConfig(r=0, oft_block_size=3, target_modules=["query", "output.dense"]),
        }
    fan: dict[str, Any] = {"fan_in_fan_out": True}
    all_four = ["c_attn", "c_fc", "c_proj"]
    ia3 = {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}
    # Only one LoRA: PEFT disables a LoRA that another LoRA wraps.
    return {
        "dora": peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=all_four, **fan),
        "ia3": peft.IA3Config(**ia3, **fan),
        "hira": peft.HiraConfig(r=2, target_modules=["c_attn", "attn.c_proj"], **fan),
    }


def by_peft(root: Path) -> None:
    """Writes the weights, the adapters and the outputs of PEFT's unmerged forward."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BertModel

    from ..parity import harness, nested

    for kind, values in CONFIGS.items():
        folder, rng = root / kind, np.random.default_rng(len(kind))
        folder.mkdir(parents=True)
        config = AutoConfig.for_model(**values, attn_implementation="eager")
        with harness.exact():
            make: Any = BertModel if kind == "bert" else AutoModelForCausalLM.from_config
            model = make(config).eval().double()
            for name, leaf in model.named_parameters():
                center = 1.0 if name.endswith("weight") and leaf.ndim == 1 else 0.0
                value = center + 0.4 * rng.normal(size=leaf.shape)
                leaf.copy_(torch.from_numpy(value.astype(np.float32).astype(np.float64)))
        for i, (name, adapter) in enumerate(adapters(kind).items()):
            harness.save_adapter(model, adapter, folder / "adapters" / name, seed=i)
        stack = [folder / "adapters" / name for name in STACKS[kind]]
        tokens = rng.integers(0, 23, (2, 9))
        mixed = nested.nested(model, stack)
        with harness.exact():
            out: Any = mixed(torch.from_numpy(tokens), attention_mask=torch.from_numpy(1 * MASK))
        state = {k: v for k, v in harness.state(model).items() if k != "lm_head.weight"}
        save_file(
            {k: np.ascontiguousarray(v) for k, v in state.items()}, folder / "state.safetensors"
        )
        truth = out.last_hidden_state if kind == "bert" else out.logits
        save_file({"tokens": tokens, "peft": truth.numpy()}, folder / "truth.safetensors")


def by_flax(root: Path) -> None:
    """Packs the Flax models' params, the params that jaxmix composes, and the outputs with both."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import transformers
    from flax.traverse_util import flatten_dict, unflatten_dict

    import jaxmix

    old: Any = transformers  # current transformers has no Flax models
    models: dict[str, Any] = {
        "bert": old.FlaxBertModel(old.BertConfig(**BERT), dtype=jnp.float64),
        "gpt2": old.FlaxGPT2LMHeadModel(old.GPT2Config(**GPT2), dtype=jnp.float64),
    }
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for kind, model in models.items():
        truth = load_file(root / kind / "truth.safetensors")
        params = unflatten_dict(linen(load_file(root / kind / "state.safetensors")))
        shapes = jax.tree.map(jnp.shape, model.params)
        assert jax.tree.map(jnp.shape, params) == shapes, "the names of the Flax model are others"
        mix = [jaxmix.load(root / kind / "adapters" / name) for name in STACKS[kind]]
        composed = jaxmix.compose(jax.tree.map(jnp.asarray, params), mix)
        options = {"attention_mask": jnp.asarray(MASK, int)}
        for name, tree in (("base", params), ("composed", composed)):
            out = model(jnp.asarray(truth["tokens"]), params=tree, **options)
            truth[f"flax_{name}"] = np.asarray(out[0])
            leaves = {k: np.asarray(v) for k, v in flatten_dict(tree, sep=".").items()}
            tensors[f"{kind}/{name}.safetensors"] = leaves
        tensors[f"{kind}/truth.safetensors"] = {**truth, "mask": MASK}
        shutil.copytree(root / kind / "adapters", root / "adapters" / kind, dirs_exist_ok=True)
    written_by = {name: version(name) for name in ("transformers", "flax", "jax")}
    data = {"written_by.json": written_by, "configs.json": CONFIGS, "stacks.json": STACKS}
    print(json.dumps(written_by), pack("flax457", data, tensors, root / "adapters"), "bytes")


def linen(state: dict[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the leaves of a Flax model for a state dict; FlaxConv1D's kernel is (out, in)."""
    params = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        path = module.split(".")
        if path[-1] in ("wte", "wpe") or path[-1].endswith("_embeddings"):
            leaf = "embedding"
        elif leaf == "weight":
            leaf, tensor = ("scale", tensor) if tensor.ndim == 1 else ("kernel", tensor.T)
        params[*path, leaf] = tensor
    return params


def main(step: str, folder: str) -> None:
    """Runs one of the two steps."""
    {"peft": by_peft, "flax": by_flax}[step](Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
