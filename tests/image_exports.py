"""Checks exported adapters of image models against diffusers' own loading.

Run as ``python -m tests.image_exports``, with torch and diffusers. Adapters of tiny models, under
the original names, those of diffusers and in kohya's files, are written for every program. What is
written for diffusers is loaded and fused by diffusers; every file is read back by jaxmix. Each must
have the effect of the adapter itself on the model.
"""

import argparse
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmix
from jaxmix.converters.comfyui import export_comfyui, export_original
from jaxmix.converters.diffusers import export_diffusers
from jaxmix.converters.kohya import export_kohya
from jaxmix.converters.names.images.models import ImageModel, image_models
from jaxmix.errors import JaxmixError
from jaxmix.families import Delta, DiagOFT, LoHa, LoKr, LoRA, Update
from tests.image_names_check import CASES, Tensors, _tiny

__all__ = ["main"]

_MIXINS = {
    "sd15": "StableDiffusionLoraLoaderMixin",
    "sdxl": "StableDiffusionXLLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "wan": "WanLoraLoaderMixin",
    "wan_i2v": "WanLoraLoaderMixin",
    "hunyuan_video": "HunyuanVideoLoraLoaderMixin",
    "ltx": "LTXVideoLoraLoaderMixin",
    "ltx2": "LTX2LoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "z_image": "ZImageLoraLoaderMixin",
}
_MODELS = {"chroma": "flux", "wan_i2v": "wan", "ltx2": "ltx"}
_EXPORTS: dict[str, Callable[..., Path]] = {
    "diffusers": export_diffusers,
    "kohya": export_kohya,
    "comfyui": export_comfyui,
    "original": export_original,
}
# Differences that are float32's rounding, relative to the largest effect.
_NOISE = 1e-5


class _Pipeline:
    """What diffusers' loaders need of a pipeline."""

    lora_scale = 1.0
    text_encoder = text_encoder_2 = None
    hf_device_map = None
    components: Mapping[str, Any] = {}


def _modules(state: Tensors) -> dict[str, tuple[int, ...]]:
    """The modules of a model that have matrices or kernels."""
    return {
        key.removesuffix(".weight"): tuple(tensor.shape)
        for key, tensor in state.items()
        if key.endswith(".weight") and tensor.ndim > 1
    }


def _original(model: ImageModel, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The shapes by the original names; fused where these are one module."""
    shapes_by_name: dict[str, Any] = {}
    for module in shapes:
        names = [item for item in model.templates.stored(module) if _is_used(model, item[0])]
        if not names:
            continue
        source, pieces = names[0]
        targets = list(dict.fromkeys(piece.name.removesuffix(".weight") for piece in pieces))
        if shapes.keys() >= set(targets):
            rows = sum(shapes[target][0] for target in targets)
            shapes_by_name[source] = (rows, *shapes[module][1:])
    return shapes_by_name


def _is_used(model: ImageModel, name: str) -> bool:
    return not re.search(model.without, name)


def _update(kind: str, shape: tuple[int, ...], draw: np.random.Generator) -> Update:
    """A random update of a kind."""
    out, columns, kernel = shape[0], int(np.prod(shape[1:])), shape[2:]

    def normal(*size: int) -> Any:
        return (draw.normal(size=size) * 0.3).astype(np.float32)

    match kind:
        case "loha" if not kernel:
            return LoHa(normal(out, 2), normal(2, columns), normal(out, 2), normal(2, columns), 0.7)
        case "lokr" if not kernel and out % 4 == 0 and columns % 2 == 0:
            return LoKr((normal(2, 2),), (normal(out // 2, 2), normal(2, columns // 2)), 0.7)
        case "diff" if not kernel:
            return Delta(normal(out, columns))
        case "oft" if not kernel and out % 4 == 0:
            return DiagOFT(normal(out // 4, 4, 4))
        case "dora":
            size = normal(out)
            return LoRA(normal(4, columns), normal(out, 4), 0.5, 1 + np.abs(size), kernel=kernel)
        case _:
            return LoRA(normal(4, columns), normal(out, 4), 0.5, kernel=kernel)


def _adapters(model: ImageModel, state: Tensors) -> Iterator[tuple[str, str, jaxmix.Adapter]]:
    """Adapters of each kind in the original names and in those of diffusers."""
    shapes = _modules(state)
    component = f"{model.table.prefix}."
    for kind in ("lora", "dora", "loha", "lokr", "diff", "oft"):
        for scheme, tree in (("diffusers", shapes), ("original", _original(model, shapes))):
            draw = np.random.default_rng(1)
            start = component if scheme == "diffusers" else ""
            updates = {start + name: _update(kind, shape, draw) for name, shape in tree.items()}
            yield kind, scheme, jaxmix.Adapter(updates, name=kind)


def _composed(state: Tensors, adapter: jaxmix.Adapter, component: str, names: str) -> Tensors:
    """The model with the adapter, by jaxmix, on the tree in diffusers' names."""
    tree = {f"{component}.{key}": np.asarray(x, np.float64) for key, x in state.items()}
    updates = {
        site if site.startswith(f"{component}.") else f"{component}.{site}": update
        for site, update in adapter.updates.items()
    }
    renamed = jaxmix.Adapter(updates, adapter.strength, adapter.name)
    with jax.enable_x64(True):
        composed = jaxmix.compose(tree, [renamed], names=names)
    return {key.partition(".")[2]: np.asarray(x) for key, x in composed.items()}


def _fused(name: str, file: Path) -> Tensors:
    """The model with a file, by diffusers."""
    import diffusers.loaders.lora_pipeline as pipelines  # pyright: ignore[reportMissingImports]

    model = _tiny(CASES[name])
    part = "unet" if CASES[name].table == "unet" else "transformer"
    kind = type("Pipeline", (_Pipeline, getattr(pipelines, _MIXINS[name])), {part: model})
    pipeline = kind()
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora(components=[part])
    return {
        key.replace(".base_layer", ""): tensor.detach().numpy()
        for key, tensor in model.state_dict().items()
        if "lora_" not in key
    }


def _distance(tensors: Tensors, expected: Tensors, base: Tensors) -> float:
    """The largest difference, over the largest effect."""
    top = max(np.abs(expected[key] - np.asarray(base[key])).max() for key in expected)
    return max(float(np.abs(tensors[key] - expected[key]).max()) for key in expected) / float(top)


def _verdict(results: Mapping[str, float]) -> str:
    """What each reader found, as a line."""
    distances = ", ".join(f"{reader} {value:.1e}" for reader, value in results.items())
    return f"{'right' if max(results.values()) < _NOISE else 'WRONG'}: {distances}"


def _checked(name: str, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """``(kind, scheme, program, result)`` of one model."""
    base = _tiny(CASES[name]).state_dict()
    state = {key: tensor.numpy() for key, tensor in base.items()}
    (model,) = [m for m in image_models() if m.name == _MODELS.get(name, name)]
    component = model.table.prefix
    for kind, scheme, adapter in _adapters(model, state):
        expected = _composed(state, adapter, component, model.table.name)
        for program, export in _EXPORTS.items():
            file = folder / "x.safetensors"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    # Blocks of rotations do not show whether SD 3's modulation is swapped.
                    options = {"base": state} if (name, kind) == ("sd3", "oft") else {}
                    export(adapter, file, names=model.name, force=True, **options)
            except JaxmixError as error:
                yield kind, scheme, program, f"refused: {' '.join(str(error).split())[:90]}"
                continue
            reloaded = jaxmix.load(file, base=state)
            output = _composed(state, reloaded, component, model.table.name)
            results = {"jaxmix": _distance(output, expected, state)}
            if program == "diffusers":
                results["diffusers"] = _distance(_fused(name, file), expected, state)
            yield kind, scheme, program, _verdict(results)


def _clip(seed: int) -> Any:
    """A tiny text encoder of CLIP, with the names that transformers has now."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "vocab_size": 50}
    torch.manual_seed(seed)
    return CLIPTextModel(CLIPTextConfig(num_hidden_layers=2, num_attention_heads=2, **sizes))


def _text_checked(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Adapters of SDXL's text encoders, and of its U-Net in the original names."""
    import diffusers.loaders.lora_pipeline as pipelines  # pyright: ignore[reportMissingImports]

    parts = {"unet": _tiny(CASES["sdxl"]), "text_encoder": _clip(1), "text_encoder_2": _clip(2)}
    tree = {
        f"{part}.{key}": tensor.numpy().copy()
        for part, model in parts.items()
        for key, tensor in model.state_dict().items()
    }
    draw = np.random.default_rng(3)
    sites = [key for key in tree if re.search(r"text_encoder.*(q_proj|fc1|out_proj)\.weight", key)]
    updates = {key.removesuffix(".weight"): _update("lora", tree[key].shape, draw) for key in sites}
    wide = {key: np.asarray(x, np.float64) for key, x in tree.items()}
    unet = {"unet.up_blocks.0.attentions.0.proj_in": (32, 32)}
    updates |= {site: _update("lora", shape, draw) for site, shape in unet.items()}
    adapter = jaxmix.Adapter(updates)
    with jax.enable_x64(True):
        expected = {k: np.asarray(x) for k, x in jaxmix.compose(wide, adapter).items()}
    for program, export in _EXPORTS.items():
        file = export(adapter, folder / "x.safetensors", force=True)
        with jax.enable_x64(True):
            composed = jaxmix.compose(wide, jaxmix.load(file, base=tree))
            output = {key: np.asarray(x) for key, x in composed.items()}
        results = {"jaxmix": _distance(output, expected, tree)}
        if program == "diffusers":
            mixin = pipelines.StableDiffusionXLLoraLoaderMixin
            pipeline = type("Pipeline", (_Pipeline, mixin), parts)()
            pipeline.load_lora_weights(str(folder), weight_name=file.name)
            pipeline.fuse_lora(components=list(parts))
            output = {
                f"{part}.{key}".replace(".base_layer", ""): tensor.detach().numpy()
                for part, model in parts.items()
                for key, tensor in model.state_dict().items()
                if "lora_" not in key
            }
            results["diffusers"] = _distance(output, expected, tree)
        yield "text encoders", "diffusers", program, _verdict(results)


def main() -> None:
    """Checks the models that are named, or all; exits with an error if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*_MIXINS, []])
    models, failures = parser.parse_args().models, 0
    logging.disable(logging.WARNING)  # of text encoders, which these pipelines lack
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = ((name, *row) for name in models or _MIXINS for row in _checked(name, place))
        text = (("sdxl", *row) for row in (() if models else _text_checked(place)))
        for row in chain(text, rows):
            print(*row, sep=" | ", flush=True)
            failures += "WRONG" in row[-1]
    if failures:
        raise SystemExit(f"{failures} files are wrong")


if __name__ == "__main__":
    main()
