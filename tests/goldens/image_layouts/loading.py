"""How each library loads tensors of PyTorch's models into its own tree."""

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

__all__ = ["KINDS", "MAXDIFFUSION"]

State = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
_FLUX = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 6,
    "num_attention_heads": 2,
    "joint_attention_dim": 10,
    "pooled_projection_dim": 6,
}
_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 6,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 8,
    "ffn_dim": 14,
    "num_layers": 2,
}
_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
}
_SD15 = {
    **_UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}
_SDXL = {
    **_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 2,
    "projection_class_embeddings_input_dim": 20,
}
_KLEIN = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 3,
    "joint_attention_dim": 10,
    "guidance_embeds": False,
}
_Z_IMAGE = {
    "in_channels": 4,
    "dim": 12,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 10,
}
_LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 3,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "num_layers": 2,
    "caption_channels": 10,
}
_LTX2 = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 8,
    "audio_in_channels": 3,
    "audio_out_channels": 3,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 3,
    "audio_cross_attention_dim": 6,
    "num_layers": 2,
    "caption_channels": 10,
}


def _model(name: str, **config: Any) -> Callable[[], Shapes]:
    """The names and shapes of a model of diffusers."""

    def shapes() -> Shapes:
        import diffusers
        import torch

        with torch.device("meta"):
            model = getattr(diffusers, name)(**config)
        return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}

    return shapes


def _torch(state: State) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in state.items()}


def _flat(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of nested dicts by their dotted names."""
    from flax import nnx
    from flax.traverse_util import flatten_dict

    flat = flatten_dict(tree) if isinstance(tree, dict) else dict(nnx.to_flat_state(tree))
    return {
        ".".join(map(str, path)): np.asarray(getattr(leaf, "value", leaf))
        for path, leaf in flat.items()
    }


def _mesh() -> Any:
    import jax

    axes = ("data", "fsdp", "tensor", "context")
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), axes)


def _nnx_shapes(make: Callable[[Any, Any], Any]) -> dict[Any, Any]:
    """The names and shapes of an NNX model's parameters, as nested dicts."""
    from flax import nnx

    with _mesh() as mesh:
        model = nnx.eval_shape(lambda: make(nnx.Rngs(0), mesh))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _folder(state: State, root: str) -> None:
    """A sharded folder of diffusers, of one shard."""
    from safetensors.torch import save_file

    save_file(_torch(state), Path(root) / "model.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model.safetensors")}
    path = Path(root) / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))


def _checked(leaves: dict[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves, which must be those of the model itself."""
    ours = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    own = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
    assert ours == own, sorted(set(ours.items()) ^ set(own.items()))
    return leaves


def _shapes(tree: Any) -> dict[str, Any]:
    from flax.linen import meta
    from flax.traverse_util import flatten_dict

    return {".".join(map(str, k)): v for k, v in flatten_dict(meta.unbox(tree)).items()}


def _small_groups() -> Any:
    """Norms of two groups instead of 32, which the Flax models have whatever their width."""
    from flax import linen

    whole = linen.GroupNorm
    return mock.patch.object(
        linen, "GroupNorm", lambda *_, **how: whole(**{**how, "num_groups": 2})
    )


def _unet(**config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        import jax
        from maxdiffusion.models import modeling_flax_pytorch_utils as utils
        from maxdiffusion.models.unet_2d_condition_flax import FlaxUNet2DConditionModel

        model = FlaxUNet2DConditionModel(**config)
        with _small_groups():
            tree = model.init_weights(jax.random.key(0), eval_only=True)
            found = utils.convert_pytorch_state_dict_to_flax(_torch(state), model)
        return _checked(_flat(found), _shapes(tree))

    return load


def _old_unet(**config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        import jax
        from diffusers import FlaxUNet2DConditionModel
        from diffusers.models import modeling_flax_pytorch_utils as utils

        model = FlaxUNet2DConditionModel(**config)
        with _small_groups():
            tree = jax.eval_shape(model.init_weights, jax.random.key(0))
            found = utils.convert_pytorch_state_dict_to_flax(_torch(state), model)
        return _checked(_flat(found), _shapes(tree))

    return load


def _bfl(state: State) -> dict[str, np.ndarray]:
    """A state of diffusers' Flux by the names of Black Forest Labs, by diffusers' converter."""
    from diffusers.loaders import single_file_utils as utils

    width = 12
    top = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
    }
    double = {
        "img_mod.lin": "norm1.linear",
        "txt_mod.lin": "norm1_context.linear",
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.proj": "attn.to_add_out",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
    }
    norms = {
        "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
        "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
        "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
        "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    }
    made: dict[str, np.ndarray] = {}
    for part in ("weight", "bias"):
        made |= {f"{new}.{part}": state[f"{old}.{part}"] for new, old in top.items()}
        halves = np.split(state[f"norm_out.linear.{part}"], 2)
        made[f"final_layer.adaLN_modulation.1.{part}"] = np.concatenate(halves[::-1])
        for i in range(_FLUX["num_layers"]):
            at, new = f"transformer_blocks.{i}", f"double_blocks.{i}"
            made |= {f"{new}.{n}.{part}": state[f"{at}.{o}.{part}"] for n, o in double.items()}
            for stream, names in (
                ("img", ("to_q", "to_k", "to_v")),
                ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
            ):
                qkv = [state[f"{at}.attn.{name}.{part}"] for name in names]
                made[f"{new}.{stream}_attn.qkv.{part}"] = np.concatenate(qkv)
        for i in range(_FLUX["num_single_layers"]):
            at, new = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            fused = [state[f"{at}.{name}.{part}"] for name in names]
            made[f"{new}.linear1.{part}"] = np.concatenate(fused)
            made[f"{new}.linear2.{part}"] = state[f"{at}.proj_out.{part}"]
            made[f"{new}.modulation.lin.{part}"] = state[f"{at}.norm.linear.{part}"]
    for i in range(_FLUX["num_layers"]):
        for new, old in norms.items():
            made[f"double_blocks.{i}.{new}"] = state[f"transformer_blocks.{i}.{old}"]
    for i in range(_FLUX["num_single_layers"]):
        for x, y in (("query", "q"), ("key", "k")):
            old = f"single_transformer_blocks.{i}.attn.norm_{y}.weight"
            made[f"single_blocks.{i}.norm.{x}_norm.scale"] = state[old]
    # diffusers' own converter, whose width is fixed, leads back.
    source = inspect.getsource(utils.convert_flux_transformer_checkpoint_to_diffusers)
    space: dict[str, Any] = {"torch": utils.torch}
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)
    again = space["convert_flux_transformer_checkpoint_to_diffusers"](_torch(made))
    assert set(again) == set(state)
    assert all((again[name].numpy() == tensor).all() for name, tensor in state.items())
    return made


def _flux(state: State) -> dict[str, np.ndarray]:
    """Maxdiffusion's loader of Flux, whose width is fixed too."""
    import jax
    from maxdiffusion.models.flux import util
    from maxdiffusion.models.flux.transformers import transformer_flux_flax as flux
    from safetensors.torch import save_file

    width = 12
    model = flux.FluxTransformer2DModel(
        **_FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2), mesh=None
    )
    with _mesh():
        tree = model.init_weights(jax.random.key(0), 16, eval_only=True)
    shapes = _shapes(tree)
    keyed = {tuple(name.split(".")): leaf for name, leaf in shapes.items()}
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "flux.safetensors"
        save_file(_torch(_bfl(state)), path)
        source = inspect.getsource(util.load_flow_model).replace("9216", str(3 * width))
        space = dict(vars(util))
        exec(source, space)
        util.configs["flux-dev"].ckpt_path = str(path)
        found = space["load_flow_model"]("flux-dev", keyed, "cpu", False)
    leaves = _flat(found)
    # The older model is traced with inputs of Flux's own widths.
    inputs = ("img_in", "txt_in", "time_text_embed.PixArtAlphaTextProjection_0.linear_1")
    fixed = {f"{name}.kernel": leaves[f"{name}.kernel"] for name in inputs}
    return _checked(leaves, {**shapes, **fixed})


def _wan(scan: bool, **config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        from maxdiffusion.models.wan import wan_utils
        from maxdiffusion.models.wan.transformers.transformer_wan import WanModel

        tree = _nnx_shapes(
            lambda rngs, mesh: WanModel(rngs=rngs, mesh=mesh, scan_layers=scan, **config)
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            found = wan_utils.load_wan_transformer(
                root, tree, "cpu", num_layers=config["num_layers"], scan_layers=scan
            )
        return _checked(_flat(found), _shapes(tree))

    return load


def _z_image(scan: bool) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        from maxdiffusion.models.z_image.transformer_z_image import ZImageTransformer2DModel
        from maxdiffusion.models.z_image.z_image_utils import load_z_image_transformer

        tree = _nnx_shapes(
            lambda rngs, mesh: ZImageTransformer2DModel(
                rngs=rngs, mesh=mesh, scan_layers=scan, axes_dims=(2, 1, 1), **_Z_IMAGE
            )
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            found = load_z_image_transformer(root, tree, subfolder="", scan_layers=scan)
        return _checked(_flat(found), _shapes(tree))

    return load


def _ltx2(scan: bool) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        from maxdiffusion.models.ltx2 import ltx2_utils
        from maxdiffusion.models.ltx2.transformer_ltx2 import LTX2VideoTransformer3DModel

        tree = _nnx_shapes(
            lambda rngs, mesh: LTX2VideoTransformer3DModel(
                rngs=rngs, mesh=mesh, scan_layers=scan, **_LTX2
            )
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            local = lambda _, filename, subfolder="": str(Path(root) / filename)  # noqa: E731
            ltx2_utils.hf_hub_download = local
            found = ltx2_utils.load_transformer_weights(root, tree, "cpu", scan_layers=scan)
        return _checked(_flat(found), _shapes(tree))

    return load


def _ltx(state: State) -> dict[str, np.ndarray]:
    """LTX-Video, whose tensors have Lightricks' names, by its converter of names."""
    import jax
    from maxdiffusion.models.ltx_video.transformers.transformer3d import Transformer3DModel
    from maxdiffusion.models.ltx_video.utils.torch_compat import torch_statedict_to_jax

    config: dict[str, Any] = {**_LTX, "num_attention_heads": 16, "attention_head_dim": 16}
    config |= {"cross_attention_dim": 256, "adaptive_norm": "single_scale_shift"}
    config |= {"qk_norm": "rms_norm", "positional_embedding_type": "rope"}
    config |= {"positional_embedding_theta": 1e4, "positional_embedding_max_pos": [20, 2048, 2048]}
    config |= {"activation_fn": "gelu-approximate", "attention_bias": True}
    config |= {"standardization_norm": "rms_norm", "norm_elementwise_affine": False}
    channels = config.pop("in_channels")
    model = Transformer3DModel(**config)
    # It needs a width of 256 at least; the converter looks at names only.
    tree = model.init_weights(channels, jax.random.key(0), config["caption_channels"])
    own = {}
    for name, tensor in state.items():
        for old, new in (
            ("proj_in", "patchify_proj"),
            ("time_embed", "adaln_single"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        ):
            name = name.replace(old, new)
        own[name] = tensor
    from flax.linen import meta

    found = _flat(torch_statedict_to_jax({"params": meta.unbox(tree)}, _torch(own))["params"])
    wide = _shapes(tree)
    assert {k: v.ndim for k, v in found.items()} == {k: len(v.shape) for k, v in wide.items()}
    return found


def _klein(state: State) -> dict[str, np.ndarray]:
    from flax import nnx
    from maxdiffusion.models.flux import util
    from maxdiffusion.models.flux.transformers import transformer_flux_flax as flux

    with _mesh() as mesh:
        config = {**_KLEIN, "pooled_projection_dim": 6}
        model = nnx.eval_shape(
            lambda: flux.NNXFlux2KleinTransformer2DModel(
                rngs=nnx.Rngs(0), mesh=mesh, axes_dim=(1, 1, 1, 1), **config
            )
        )
    shapes = nnx.state(model, nnx.Param)
    found = util.load_and_convert_flux_klein_nnx_weights(
        "", shapes, 2, 2, dtype=np.float32, pt_state_dict=dict(state)
    )
    # PyTorch's model has no pooled text, and no biases.
    leaves = {name: leaf for name, leaf in _flat(found).items() if not name.endswith(".bias")}
    return {name: leaf for name, leaf in leaves.items() if "pooled_embedder" not in name}


_AT = "github.com/AI-Hypercomputer/maxdiffusion, commit {}"
_AUGUST = _AT.format("7cfb8801d41d1728f0232cd7ee59e900a151fecf")
Load = Callable[[State], dict[str, np.ndarray]]
KINDS: dict[str, tuple[Callable[[], Shapes], Load, str]] = {
    "maxdiffusion-sd15": (_model("UNet2DConditionModel", **_SD15), _unet(**_SD15), "flax_unet"),
    "maxdiffusion-sdxl": (_model("UNet2DConditionModel", **_SDXL), _unet(**_SDXL), "flax_unet"),
    "diffusers-sd15": (
        _model("UNet2DConditionModel", **_SD15),
        _old_unet(**{name: value for name, value in _SD15.items() if name != "norm_num_groups"}),
        "flax_unet",
    ),
    "maxdiffusion-flux": (
        _model("FluxTransformer2DModel", **_FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2)),
        _flux,
        "maxdiffusion_flux",
    ),
    "maxdiffusion-flux-unscanned": (
        _model("FluxTransformer2DModel", **_FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2)),
        _flux,
        "maxdiffusion_flux",
    ),
    "maxdiffusion-flux2": (
        _model("Flux2Transformer2DModel", **_KLEIN, axes_dims_rope=(1, 1, 1, 1)),
        _klein,
        "maxdiffusion_flux2",
    ),
    "maxdiffusion-wan": (
        _model("WanTransformer3DModel", **_WAN),
        _wan(True, **_WAN),
        "maxdiffusion_wan",
    ),
    "maxdiffusion-wan-unscanned": (
        _model("WanTransformer3DModel", **_WAN, image_dim=9, added_kv_proj_dim=12),
        _wan(False, **_WAN, image_dim=9, added_kv_proj_dim=12),
        "maxdiffusion_wan",
    ),
    "maxdiffusion-ltx": (_model("LTXVideoTransformer3DModel", **_LTX), _ltx, "maxdiffusion_ltx"),
    "maxdiffusion-ltx2": (
        _model("LTX2VideoTransformer3DModel", **_LTX2, use_prompt_adaln_single=False),
        _ltx2(True),
        "maxdiffusion_ltx2",
    ),
    "maxdiffusion-ltx2-unscanned": (
        _model("LTX2VideoTransformer3DModel", **_LTX2, use_prompt_adaln_single=False),
        _ltx2(False),
        "maxdiffusion_ltx2",
    ),
    "maxdiffusion-z_image": (
        _model("ZImageTransformer2DModel", **_Z_IMAGE, axes_dims=(2, 1, 1)),
        _z_image(True),
        "maxdiffusion_z_image",
    ),
    "maxdiffusion-z_image-unscanned": (
        _model("ZImageTransformer2DModel", **_Z_IMAGE, axes_dims=(2, 1, 1)),
        _z_image(False),
        "maxdiffusion_z_image",
    ),
}
MAXDIFFUSION = {
    **{kind: _AUGUST for kind in KINDS if kind.startswith("maxdiffusion")},
    "maxdiffusion-flux": _AT.format("64450df4~1"),
    "maxdiffusion-flux-unscanned": _AT.format("6734125c"),
}
