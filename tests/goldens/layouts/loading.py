"""Loads a Hugging Face folder into each library's own tree, as the library does, and runs it.

Where a library can't load such a folder without torch, its own tree is filled by names and shapes.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from jaxmix.converters.layouts.maxtext import maxtext_gemma3

__all__ = ["LIBRARIES", "PACKAGES", "SOURCES"]

# (folder, kind) -> (params, run(params, tokens) -> logits)
Load = Callable[[Path, str], tuple[Any, Callable[[Any, Any], Any]]]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _places(tokens: Any) -> tuple[Any, Any, Any]:
    """Returns tokens, positions and a causal mask."""
    import jax.numpy as jnp

    batch, length = tokens.shape
    positions = np.broadcast_to(np.arange(length), (batch, length))
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), (batch, length, length))
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(mask)


def tunix(folder: Path, kind: str) -> tuple[Any, Any]:
    """google-tunix's NNX models, by their own loaders."""
    import jax.numpy as jnp
    from flax import nnx

    config = _config(folder)
    package = {"llama": "llama3", "gemma2": "gemma"}.get(kind, kind)
    model_lib = _module(f"tunix.models.{package}.model")
    params_lib = _module(
        f"tunix.models.{package}.{'params_safetensors' if 'gemma' in kind else 'params'}"
    )
    fields: dict[str, Any] = {
        "num_layers": config["num_hidden_layers"],
        "embed_dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "head_dim": config["head_dim"],
        "num_kv_heads": config["num_key_value_heads"],
    }
    if kind == "gemma2":
        kinds = model_lib.AttentionType
        fields |= {
            "num_embed": config["vocab_size"],
            "attention_types": (kinds.LOCAL_SLIDING, kinds.GLOBAL),
            "use_post_attn_norm": True,
            "use_post_ffw_norm": True,
            "final_logit_softcap": 30.0,
            "attn_logits_soft_cap": 50.0,
            "sliding_window_size": 16,
        }
    elif kind == "gemma3":
        fields |= {"num_embed": config["vocab_size"], "sliding_window_size": 16}
        fields |= {"param_dtype": jnp.float32}
    else:
        fields |= {"vocab_size": config["vocab_size"], "norm_eps": 1e-6}
        fields |= {"rope_theta": config["rope_theta"]}
    model_config = model_lib.ModelConfig(**fields)
    model = params_lib.create_model_from_safe_tensors(str(folder), model_config, dtype=jnp.float32)
    graph, state = nnx.split(model)

    def run(params: Any, tokens: Any) -> Any:
        tokens, positions, mask = _places(tokens)
        return nnx.merge(graph, params)(tokens, positions, None, mask)[0]

    return state, run


def gemma(folder: Path, kind: str) -> tuple[Any, Any]:
    """DeepMind's Linen models, filled as their own checkpoints are."""
    import jax
    import jax.numpy as jnp

    config = _config(folder)
    nn = _module("gemma.gm.nn._config")
    modules = _module("gemma.gm.nn._modules")
    model_lib = _module("gemma.gm.nn._transformer")
    kinds = modules.AttentionType
    model_config = nn.TransformerConfig(
        num_embed=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        final_logit_softcap=30.0 if kind == "gemma2" else None,
        attn_logits_soft_cap=50.0 if kind == "gemma2" else None,
        use_post_attn_norm=kind != "gemma",
        use_post_ffw_norm=kind != "gemma",
        use_qk_norm=kind == "gemma3",
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL)
        if kind == "gemma2"
        else (kinds.LOCAL_SLIDING,) * 2
        if kind == "gemma3"
        else (kinds.GLOBAL,) * 2,
        sliding_window_size=16,
        transpose_gating_einsum=kind != "gemma",
    )
    model = model_lib.Transformer(config=model_config, dtype=jnp.float32, tokens="x")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    params = _filled(shapes, load_file(folder / "model.safetensors"), kind)

    def run(params: Any, tokens: Any) -> Any:
        return model.apply({"params": params}, jnp.asarray(tokens)).logits

    return params, run


def _filled(shapes: Any, state: dict[str, np.ndarray], kind: str) -> Any:
    """Returns DeepMind's tree with a checkpoint's numbers."""
    import jax.numpy as jnp

    def layer(i: int) -> dict[str, Any]:
        layer_state = {
            k.split(f"layers.{i}.")[1]: v for k, v in state.items() if f"layers.{i}." in k
        }
        q = layer_state["self_attn.q_proj.weight"].reshape(4, 6, 12).transpose(0, 2, 1)
        k, v = (layer_state[f"self_attn.{x}_proj.weight"].reshape(2, 6, 12) for x in "kv")
        o = layer_state["self_attn.o_proj.weight"].T.reshape(4, 6, 12)
        gate = np.stack([layer_state[f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
        gate = gate.transpose(0, 2, 1) if kind == "gemma" else gate
        norms = {
            "pre_attention_norm": "input_layernorm",
            "pre_ffw_norm": "post_attention_layernorm",
        }
        if kind != "gemma":
            norms |= {"post_attention_norm": "post_attention_layernorm"}
            norms |= {"pre_ffw_norm": "pre_feedforward_layernorm"}
            norms |= {"post_ffw_norm": "post_feedforward_layernorm"}
        params: dict[str, Any] = {
            "attn": {
                "q_einsum": {"w": q},
                "kv_einsum": {"w": np.stack([k, v]).transpose(0, 1, 3, 2)},
                "attn_vec_einsum": {"w": o},
            },
            "mlp": {"gating_einsum": gate, "linear": layer_state["mlp.down_proj.weight"].T},
            **{leaf: {"scale": layer_state[f"{norm}.weight"]} for leaf, norm in norms.items()},
        }
        if kind == "gemma3":
            for x, name in (("q", "_query_norm"), ("k", "_key_norm")):
                params["attn"][name] = {"scale": layer_state[f"self_attn.{x}_norm.weight"]}
        return params

    import jax

    tree = {
        "embedder": {"input_embedding": state["model.embed_tokens.weight"]},
        "final_norm": {"scale": state["model.norm.weight"]},
        "layer_0": layer(0),
        "layer_1": layer(1),
    }
    tree = jax.tree.map(jnp.asarray, tree)
    expected_shapes, loaded_shapes = (jax.tree.map(jnp.shape, x) for x in (shapes, tree))
    assert (
        jax.tree.structure(expected_shapes) == jax.tree.structure(loaded_shapes)
        and expected_shapes == loaded_shapes
    )
    return tree


def bonsai(folder: Path, kind: str) -> tuple[Any, Any]:
    """Bonsai's NNX model of Qwen 3, by its own loader."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    config = _config(folder)
    model_lib = _module("bonsai.models.qwen3.modeling")
    model_config = model_lib.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        emb_dim=config["hidden_size"],
        mlp_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=int(config["rope_theta"]),
        rope_scaling_factor=None,
        local_rope_theta=None,
        norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    params_lib = _module("bonsai.models.qwen3.params")
    model = params_lib.create_model_from_safe_tensors(str(folder), model_config)
    graph, state = nnx.split(model)
    state = jax.tree.map(jnp.asarray, state)

    def run(params: Any, tokens: Any) -> Any:
        filled = nnx.merge(graph, params)
        cache = model_lib.init_cache(model_config, tokens.shape[0], tokens.shape[1], 1, jnp.float32)
        mask = jnp.ones(tokens.shape, jnp.int32)
        return filled(jnp.asarray(tokens), cache=cache, segment_ids=mask)

    return state, run


def keras_hub(folder: Path, kind: str) -> tuple[Any, Any]:
    """KerasHub's backbones, by their own converters."""
    os.environ["KERAS_BACKEND"] = "jax"
    convert = _module(
        "keras_hub.src.utils.transformers.convert_"
        + {"llama": "llama3", "qwen2": "qwen"}.get(kind, kind)
    )
    loader_lib = _module("keras_hub.src.utils.transformers.safetensor_utils")
    config = {"sliding_window": None, "use_sliding_window": False, **_config(folder)}
    backbone = convert.backbone_cls(**convert.convert_backbone_config(config), dtype="float32")
    with loader_lib.SafetensorLoader(str(folder)) as loader:
        convert.convert_weights(backbone, loader, config)
    params = {v.path: v.value for v in backbone.variables}

    def run(params: Any, tokens: Any) -> Any:
        for v in backbone.variables:
            v.assign(params[v.path])
        hidden = backbone({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
        return backbone.token_embedding(hidden, reverse=True)

    return params, run


def levanter(folder: Path, kind: str) -> tuple[Any, Any]:
    """Levanter's Equinox models, by Haliax's reader of state dicts."""
    import jax
    import jax.numpy as jnp

    hax = _module("haliax")
    model_lib = _module("levanter.models.llama" if kind == "llama" else "levanter.models.qwen")
    name = {"llama": "LlamaConfig", "qwen2": "QwenConfig", "qwen3": "Qwen3Config"}[kind]
    config = _config(folder)
    rope = _module("levanter.layers.rotary").DefaultRotaryEmbeddingsConfig
    model_config = getattr(model_lib, name)(
        max_seq_len=32,
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        layer_norm_epsilon=1e-6,
        rope=rope(theta=config["rope_theta"]),
    )
    vocab = hax.Axis("vocab", config["vocab_size"])
    shapes = model_config.model_type.init(vocab, model_config, key=jax.random.key(0))
    state = {k: jnp.asarray(v) for k, v in load_file(folder / "model.safetensors").items()}
    model = _module("haliax.state_dict").from_torch_compatible_state_dict(shapes, state)

    def run(params: Any, tokens: Any) -> Any:
        axes = (hax.Axis("batch", tokens.shape[0]), hax.Axis("position", tokens.shape[1]))
        mask = _module("levanter.layers.attention").AttentionMask.causal()
        return params(hax.named(jnp.asarray(tokens), axes), attn_mask=mask).array

    return model, run


def easydel(folder: Path, kind: str) -> tuple[Any, Any]:
    """EasyDeL's NNX models, filled by names, since their own loader needs torch."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    ed = _module("easydel")
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    fields = {k: v for k, v in _config(folder).items() if k not in ("architectures", "model_type")}
    fields.pop("torch_dtype")
    model_config = getattr(ed, f"{name}Config")(
        **fields, attn_mechanism="vanilla", attn_dtype=jnp.float32, kvdtype=jnp.float32
    )
    model = getattr(ed, f"{name}ForCausalLM")(
        model_config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    graph, state, others = nnx.split(model, nnx.Param, ...)
    tensors = load_file(folder / "model.safetensors")

    def fill(path: Any, leaf: Any) -> Any:
        names = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        names = names[:-1] if names[-1] == "value" else names
        last = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(
            names[-1], names[-1]
        )
        tensor = tensors[".".join([*names[:-1], last])]
        return jnp.asarray(tensor.T if names[-1] == "kernel" else tensor).reshape(leaf.shape)

    state = jax.tree_util.tree_map_with_path(fill, state)

    def run(params: Any, tokens: Any) -> Any:
        filled = nnx.merge(graph, params, others)
        with model_config.mesh:
            return filled(input_ids=jnp.asarray(tokens)).logits

    return state, run


def flax_transformers(folder: Path, kind: str) -> tuple[Any, Any]:
    """Transformers 4's Linen model of Llama, filled by names: its own loader needs torch."""
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict, unflatten_dict

    old = _module("transformers")
    fields = {k: v for k, v in _config(folder).items() if k != "torch_dtype"}
    model = old.FlaxLlamaForCausalLM(old.LlamaConfig(**fields), dtype=jnp.float32)
    tensors = load_file(folder / "model.safetensors")
    flat: dict[Any, Any] = {}
    leaves: dict[Any, Any] = flatten_dict(model.params)
    for path, leaf in leaves.items():
        module = ".".join(path[:-1])
        tensor = tensors[f"{module}.weight"]
        flat[path] = jnp.asarray(tensor.T if path[-1] == "kernel" else tensor)
        assert flat[path].shape == leaf.shape, path
    return unflatten_dict(flat), lambda params, tokens: model(jnp.asarray(tokens), params=params)[0]


def torchax(folder: Path, kind: str) -> tuple[Any, Any]:
    """PyTorch's own model on JAX arrays."""
    import jax.numpy as jnp

    model = _module("transformers").AutoModelForCausalLM.from_pretrained(folder).eval()
    params, function = _module("torchax").extract_jax(model)

    def run(params: Any, tokens: Any) -> Any:
        out = function(params, (jnp.asarray(tokens),), {"use_cache": False})
        return out["logits"] if isinstance(out, dict) else out.logits

    return params, run


def maxtext(folder: Path, kind: str) -> tuple[Any, Any]:
    """MaxText's tree, by its own converter's tables and hooks; shapes are from its sources.

    Its models need more packages than are installed for a CPU, so no model runs.
    """
    kind, _, variant = kind.partition("-")
    config = _config(folder)
    tables = _module("maxtext.checkpoint_conversion.utils.param_mapping")
    model_names = {"llama": "llama3.1-8b", "qwen2": "qwen2.5-7b", "qwen3": "qwen3-8b"}
    model_names |= {"gemma2": "gemma2-2b", "gemma3_deep": "gemma3-4b"}
    name = model_names[kind]
    vision = {"vision_config": {"num_hidden_layers": 0}, "text_config": config}
    options = {**config, **(vision if kind == "gemma3_deep" else {})}
    mapping = tables.PARAM_MAPPING[name](options, None, scan_layers=not variant)
    hooks = tables.HOOK_FNS[name](options, None, scan_layers=not variant, saving_to_hf=False)
    state = load_file(folder / "model.safetensors")
    d, f, v, n, k, h = (
        config[x]
        for x in (
            *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"),
            *("num_key_value_heads", "head_dim"),
        )
    )
    shapes = {
        "query-kernel": (d, n, h),
        "key-kernel": (d, k, h),
        "value-kernel": (d, k, h),
        "out-kernel": (n, h, d),
        "query-bias": (n, h),
        "key-bias": (k, h),
        "value-bias": (k, h),
        "query_norm-scale": (h,),
        "key_norm-scale": (h,),
        "wi_0-kernel": (d, f),
        "wi_1-kernel": (d, f),
        "wo-kernel": (f, d),
        "logits_dense-kernel": (d, v),
        "token_embedder-embedding": (v, d),
    }
    tree: dict[str, Any] = {}
    for key, names in mapping.items():
        if not names:
            continue
        first_name = names if isinstance(names, str) else names[0]
        if "vision" in key or first_name.replace("language_model.", "") not in state:
            continue
        shape = shapes.get("-".join(key.split("-")[-2:]), (d,))
        chain = hooks.get(key, [])
        leaves = []
        for tensor_name in [names] if isinstance(names, str) else names:
            tensor = state[tensor_name.replace("language_model.", "")]
            for hook in chain if isinstance(chain, list) else [chain]:
                tensor = np.asarray(hook(tensor, shape))
            assert tensor.shape == shape, key
            leaves.append(tensor)
        leaf = leaves[0] if isinstance(names, str) else np.stack(leaves, axis=1)
        node = tree
        *above, last = key.split("-")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = np.asarray(leaf, np.float32)
    return tree, None


DECODERS = ("llama", "qwen2", "qwen3")
GEMMAS = ("gemma", "gemma2", "gemma3")
LIBRARIES: dict[str, dict[str, tuple[Load, Any]]] = {
    "tunix": dict.fromkeys((*DECODERS, "gemma2", "gemma3"), (tunix, None)),
    "gemma": dict.fromkeys(GEMMAS, (gemma, None)),
    "bonsai": {"qwen3": (bonsai, None)},
    "keras_hub": {
        "qwen2": (keras_hub, None),
        "qwen3": (keras_hub, None),
        "gemma": (keras_hub, None),
    },
    "levanter": dict.fromkeys(DECODERS, (levanter, None)),
    "easydel": dict.fromkeys(DECODERS, (easydel, None)),
    "flax_transformers": {"llama_old": (flax_transformers, None)},
    "torchax": {"llama": (torchax, None)},
    "maxtext": {
        **dict.fromkeys(("llama", "llama-unscanned"), (maxtext, "maxtext_llama")),
        **dict.fromkeys(("qwen2", "qwen3"), (maxtext, "maxtext_qwen")),
        **dict.fromkeys(("gemma2", "gemma2-unscanned"), (maxtext, "maxtext_gemma2")),
        "gemma3_deep": (maxtext, maxtext_gemma3(layers=8)),
        "gemma3_deep-unscanned": (maxtext, "maxtext_gemma3"),
    },
}
PACKAGES = {
    "tunix": ("google-tunix",),
    "gemma": ("gemma",),
    "bonsai": ("flax",),
    "keras_hub": ("keras-hub", "keras"),
    "levanter": ("marin-levanter", "marin-haliax"),
    "easydel": ("easydel",),
    "flax_transformers": ("transformers", "flax"),
    "torchax": ("torchax", "torch", "transformers"),
    "maxtext": ("maxtext",),
}
SOURCES = {"bonsai": "github.com/jax-ml/bonsai, commit 36284254cf738d99c1c5d1e3a292d27656a0a365"}
