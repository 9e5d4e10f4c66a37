"""Loads tensors of PyTorch's models into each library's own tree, as the library does."""

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from .configs import FLUX, KLEIN, LTX, LTX2, SD3, SD15, SDXL, WAN, Z_IMAGE
from .renaming import State, as_torch, module, original_flux, original_sd3

__all__ = ["KINDS", "MAXDIFFUSION"]

Shapes = dict[str, tuple[int, ...]]


def _model(name: str, **config: Any) -> Callable[[], Shapes]:
    """Returns the names and shapes of a model of diffusers."""

    def shapes() -> Shapes:
        diffusers = module("diffusers")
        import torch

        with torch.device("meta"):
            model = getattr(diffusers, name)(**config)
        return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}

    return shapes


def _flat(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves of nested dicts by their dotted names."""
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
    """Returns the names and shapes of an NNX model's parameters, as nested dicts."""
    from flax import nnx

    with _mesh() as mesh:
        model = nnx.eval_shape(lambda: make(nnx.Rngs(0), mesh))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _folder(state: State, root: str) -> None:
    """Writes a sharded folder of diffusers with one shard."""
    from safetensors.torch import save_file

    save_file(as_torch(state), Path(root) / "model.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model.safetensors")}
    path = Path(root) / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))


def _checked(leaves: dict[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the leaves, which must be those of the model itself."""
    loaded = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    expected = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
    assert loaded == expected, sorted(set(loaded.items()) ^ set(expected.items()))
    return leaves


def _shapes(tree: Any) -> dict[str, Any]:
    from flax.linen import meta
    from flax.traverse_util import flatten_dict

    return {".".join(map(str, k)): v for k, v in flatten_dict(meta.unbox(tree)).items()}


def _small_groups() -> Any:
    """Uses norms of two groups instead of 32, which the Flax models have at any width."""
    from flax import linen

    group_norm = linen.GroupNorm
    return mock.patch.object(
        linen, "GroupNorm", lambda *_, **options: group_norm(**{**options, "num_groups": 2})
    )


def _unet(**config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        import jax

        utils = module("maxdiffusion.models.modeling_flax_pytorch_utils")
        FlaxUNet2DConditionModel = module(
            "maxdiffusion.models.unet_2d_condition_flax"
        ).FlaxUNet2DConditionModel

        model = FlaxUNet2DConditionModel(**config)
        with _small_groups():
            tree = model.init_weights(jax.random.key(0), eval_only=True)
            params = utils.convert_pytorch_state_dict_to_flax(as_torch(state), model)
        return _checked(_flat(params), _shapes(tree))

    return load


def _old_unet(**config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        import jax

        FlaxUNet2DConditionModel = module("diffusers").FlaxUNet2DConditionModel
        utils = module("diffusers.models.modeling_flax_pytorch_utils")

        model = FlaxUNet2DConditionModel(**config)
        with _small_groups():
            tree = jax.eval_shape(model.init_weights, jax.random.key(0))
            params = utils.convert_pytorch_state_dict_to_flax(as_torch(state), model)
        return _checked(_flat(params), _shapes(tree))

    return load


def _flux(state: State) -> dict[str, np.ndarray]:
    """Loads Flux by maxdiffusion's loader, whose width is fixed."""
    import jax

    util = module("maxdiffusion.models.flux.util")
    flux = module("maxdiffusion.models.flux.transformers.transformer_flux_flax")
    from safetensors.torch import save_file

    width = 12
    model = flux.FluxTransformer2DModel(
        **FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2), mesh=None
    )
    with _mesh():
        tree = model.init_weights(jax.random.key(0), 16, eval_only=True)
    shapes = _shapes(tree)
    keyed = {tuple(name.split(".")): leaf for name, leaf in shapes.items()}
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "flux.safetensors"
        save_file(as_torch(original_flux(state)), path)
        source = inspect.getsource(util.load_flow_model).replace("9216", str(3 * width))
        space = dict(vars(util))
        exec(source, space)
        util.configs["flux-dev"].ckpt_path = str(path)
        params = space["load_flow_model"]("flux-dev", keyed, "cpu", False)
    leaves = _flat(params)
    # The older model is traced with inputs of Flux's own widths.
    inputs = ("img_in", "txt_in", "time_text_embed.PixArtAlphaTextProjection_0.linear_1")
    fixed = {f"{name}.kernel": leaves[f"{name}.kernel"] for name in inputs}
    return _checked(leaves, {**shapes, **fixed})


def _wan(scan: bool, **config: Any) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        wan_utils = module("maxdiffusion.models.wan.wan_utils")
        WanModel = module("maxdiffusion.models.wan.transformers.transformer_wan").WanModel

        tree = _nnx_shapes(
            lambda rngs, mesh: WanModel(rngs=rngs, mesh=mesh, scan_layers=scan, **config)
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            params = wan_utils.load_wan_transformer(
                root, tree, "cpu", num_layers=config["num_layers"], scan_layers=scan
            )
        return _checked(_flat(params), _shapes(tree))

    return load


def _z_image(scan: bool) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        ZImageTransformer2DModel = module(
            "maxdiffusion.models.z_image.transformer_z_image"
        ).ZImageTransformer2DModel
        load_z_image_transformer = module(
            "maxdiffusion.models.z_image.z_image_utils"
        ).load_z_image_transformer

        tree = _nnx_shapes(
            lambda rngs, mesh: ZImageTransformer2DModel(
                rngs=rngs, mesh=mesh, scan_layers=scan, axes_dims=(2, 1, 1), **Z_IMAGE
            )
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            params = load_z_image_transformer(root, tree, subfolder="", scan_layers=scan)
        return _checked(_flat(params), _shapes(tree))

    return load


def _ltx2(scan: bool) -> Callable[[State], dict[str, np.ndarray]]:
    def load(state: State) -> dict[str, np.ndarray]:
        ltx2_utils = module("maxdiffusion.models.ltx2.ltx2_utils")
        LTX2VideoTransformer3DModel = module(
            "maxdiffusion.models.ltx2.transformer_ltx2"
        ).LTX2VideoTransformer3DModel

        tree = _nnx_shapes(
            lambda rngs, mesh: LTX2VideoTransformer3DModel(
                rngs=rngs, mesh=mesh, scan_layers=scan, **LTX2
            )
        )
        with tempfile.TemporaryDirectory() as root:
            _folder(state, root)
            local = lambda _, filename, subfolder="": str(Path(root) / filename)  # noqa: E731
            ltx2_utils.hf_hub_download = local
            params = ltx2_utils.load_transformer_weights(root, tree, "cpu", scan_layers=scan)
        return _checked(_flat(params), _shapes(tree))

    return load


def _ltx(state: State) -> dict[str, np.ndarray]:
    """Loads LTX-Video, whose tensors have Lightricks' names, by its converter of names."""
    import jax

    Transformer3DModel = module(
        "maxdiffusion.models.ltx_video.transformers.transformer3d"
    ).Transformer3DModel
    torch_statedict_to_jax = module(
        "maxdiffusion.models.ltx_video.utils.torch_compat"
    ).torch_statedict_to_jax

    config: dict[str, Any] = {**LTX, "num_attention_heads": 16, "attention_head_dim": 16}
    config |= {"cross_attention_dim": 256, "adaptive_norm": "single_scale_shift"}
    config |= {"qk_norm": "rms_norm", "positional_embedding_type": "rope"}
    config |= {"positional_embedding_theta": 1e4, "positional_embedding_max_pos": [20, 2048, 2048]}
    config |= {"activation_fn": "gelu-approximate", "attention_bias": True}
    config |= {"standardization_norm": "rms_norm", "norm_elementwise_affine": False}
    channels = config.pop("in_channels")
    model = Transformer3DModel(**config)
    # It needs a width of 256 at least; the converter looks at names only.
    tree = model.init_weights(channels, jax.random.key(0), config["caption_channels"])
    tensors = {}
    for name, tensor in state.items():
        for old, new in (
            ("proj_in", "patchify_proj"),
            ("time_embed", "adaln_single"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        ):
            name = name.replace(old, new)
        tensors[name] = tensor
    from flax.linen import meta

    params = _flat(
        torch_statedict_to_jax({"params": meta.unbox(tree)}, as_torch(tensors))["params"]
    )
    wide = _shapes(tree)
    assert {k: v.ndim for k, v in params.items()} == {k: len(v.shape) for k, v in wide.items()}
    return params


def _klein(state: State) -> dict[str, np.ndarray]:
    from flax import nnx

    util = module("maxdiffusion.models.flux.util")
    flux = module("maxdiffusion.models.flux.transformers.transformer_flux_flax")

    with _mesh() as mesh:
        config = {**KLEIN, "pooled_projection_dim": 6}
        model = nnx.eval_shape(
            lambda: flux.NNXFlux2KleinTransformer2DModel(
                rngs=nnx.Rngs(0), mesh=mesh, axes_dim=(1, 1, 1, 1), **config
            )
        )
    shapes = nnx.state(model, nnx.Param)
    params = util.load_and_convert_flux_klein_nnx_weights(
        "", shapes, 2, 2, dtype=np.float32, pt_state_dict=dict(state)
    )
    # PyTorch's model has no pooled text, and no biases.
    leaves = {name: leaf for name, leaf in _flat(params).items() if not name.endswith(".bias")}
    return {name: leaf for name, leaf in leaves.items() if "pooled_embedder" not in name}


def _sd3(state: State) -> dict[str, np.ndarray]:
    """Fills KerasHub's model as its script does, which the package does not contain."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    mmdit = module("keras_hub.src.models.stable_diffusion_3.mmdit")
    model = mmdit.MMDiT(
        *(2, 12, 2, 3, 6),
        latent_shape=(4, 4, 4),
        context_shape=(None, 10),
        pooled_projection_shape=(8,),
        qk_norm="rms_norm",
        dual_attention_indices=(0,),
    )
    tensors = original_sd3(state)

    def port(layer: Any, name: str) -> None:
        weight = tensors[f"{name}.weight"]
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        layer.kernel.assign(kernel)
        layer.bias.assign(tensors[f"{name}.bias"])

    port(model.patch_embedding.patch_embedding, "x_embedder.proj")
    port(model.context_embedding, "context_embedder")
    for layer, name in ((model.vector_embedding, "y"), (model.timestep_embedding.mlp, "t")):
        port(layer.dense1, f"{name}_embedder.mlp.0")
        port(layer.dense2, f"{name}_embedder.mlp.2")
    for i, joint in enumerate(model.joint_blocks):
        for name, block in (("x_block", joint.x_block), ("context_block", joint.context_block)):
            prefix = f"joint_blocks.{i}.{name}"
            port(block.ada_layer_norm.dense, f"{prefix}.adaLN_modulation.1")
            port(block.attention_qkv, f"{prefix}.attn.qkv")
            block.q_norm.scale.assign(tensors[f"{prefix}.attn.ln_q.weight"])
            block.k_norm.scale.assign(tensors[f"{prefix}.attn.ln_k.weight"])
            if name == "context_block" and i == len(model.joint_blocks) - 1:
                continue
            port(block.attention_proj, f"{prefix}.attn.proj")
            port(block.mlp.dense1, f"{prefix}.mlp.fc1")
            port(block.mlp.dense2, f"{prefix}.mlp.fc2")
            if block.use_dual_attention:
                port(block.attention_qkv2, f"{prefix}.attn2.qkv")
                block.q_norm2.scale.assign(tensors[f"{prefix}.attn2.ln_q.weight"])
                block.k_norm2.scale.assign(tensors[f"{prefix}.attn2.ln_k.weight"])
                port(block.attention_proj2, f"{prefix}.attn2.proj")
    port(model.output_ada_layer_norm.dense, "final_layer.adaLN_modulation.1")
    port(model.output_dense, "final_layer.linear")
    leaves = {v.path.replace("/", "."): np.asarray(v.value) for v in model.variables}
    return {name: leaf for name, leaf in leaves.items() if not name.startswith("position")}


_AT = "github.com/AI-Hypercomputer/maxdiffusion, commit {}"
_AUGUST = _AT.format("7cfb8801d41d1728f0232cd7ee59e900a151fecf")
Load = Callable[[State], dict[str, np.ndarray]]
KINDS: dict[str, tuple[Callable[[], Shapes], Load, str]] = {
    "maxdiffusion-sd15": (_model("UNet2DConditionModel", **SD15), _unet(**SD15), "flax_unet"),
    "maxdiffusion-sdxl": (_model("UNet2DConditionModel", **SDXL), _unet(**SDXL), "flax_unet"),
    "diffusers-sd15": (
        _model("UNet2DConditionModel", **SD15),
        _old_unet(**{name: value for name, value in SD15.items() if name != "norm_num_groups"}),
        "flax_unet",
    ),
    "maxdiffusion-flux": (
        _model("FluxTransformer2DModel", **FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2)),
        _flux,
        "maxdiffusion_flux",
    ),
    "maxdiffusion-flux-unscanned": (
        _model("FluxTransformer2DModel", **FLUX, guidance_embeds=True, axes_dims_rope=(2, 2, 2)),
        _flux,
        "maxdiffusion_flux",
    ),
    "maxdiffusion-flux2": (
        _model("Flux2Transformer2DModel", **KLEIN, axes_dims_rope=(1, 1, 1, 1)),
        _klein,
        "maxdiffusion_flux2",
    ),
    "maxdiffusion-wan": (
        _model("WanTransformer3DModel", **WAN),
        _wan(True, **WAN),
        "maxdiffusion_wan",
    ),
    "maxdiffusion-wan-unscanned": (
        _model("WanTransformer3DModel", **WAN, image_dim=9, added_kv_proj_dim=12),
        _wan(False, **WAN, image_dim=9, added_kv_proj_dim=12),
        "maxdiffusion_wan",
    ),
    "maxdiffusion-ltx": (_model("LTXVideoTransformer3DModel", **LTX), _ltx, "maxdiffusion_ltx"),
    "maxdiffusion-ltx2": (
        _model("LTX2VideoTransformer3DModel", **LTX2, use_prompt_adaln_single=False),
        _ltx2(True),
        "maxdiffusion_ltx2",
    ),
    "maxdiffusion-ltx2-unscanned": (
        _model("LTX2VideoTransformer3DModel", **LTX2, use_prompt_adaln_single=False),
        _ltx2(False),
        "maxdiffusion_ltx2",
    ),
    "keras_hub-sd3": (_model("SD3Transformer2DModel", **SD3), _sd3, "keras_hub_sd3"),
    "maxdiffusion-z_image": (
        _model("ZImageTransformer2DModel", **Z_IMAGE, axes_dims=(2, 1, 1)),
        _z_image(True),
        "maxdiffusion_z_image",
    ),
    "maxdiffusion-z_image-unscanned": (
        _model("ZImageTransformer2DModel", **Z_IMAGE, axes_dims=(2, 1, 1)),
        _z_image(False),
        "maxdiffusion_z_image",
    ),
}
MAXDIFFUSION = {
    **{kind: _AUGUST for kind in KINDS if kind.startswith("maxdiffusion")},
    "maxdiffusion-flux": _AT.format("e0ba26c52844fd4c288d4b9d83f79d305731a27d"),
    "maxdiffusion-flux-unscanned": _AT.format("6734125ceff41a946f390e024b03a196238da79a"),
}
