"""Writes single files for ComfyUI, and files with the names of a model's original project.

`read_diffusers` reads both.
"""

import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.lycoris.program import COMFYUI, ORIGINAL, Program
from jaxmix.converters.adapters.lycoris.program_names import named_for
from jaxmix.converters.adapters.lycoris.writing import (
    module_tensors,
    save_tensors,
    with_plain_bias,
)
from jaxmix.converters.names.images.models import ImageModel
from jaxmix.errors import UnsupportedError, listing, to_lora_call
from jaxmix.families import DiagOFT, Normed, Update
from jaxmix.placement.naming import Names

__all__ = ["export_comfyui", "export_original"]


def export_comfyui(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    names: Names = None,
    base: Any = None,
    force: bool = False,
) -> Path:
    """Writes an adapter for ComfyUI: ``diffusion_model.<module>.lora_up.weight``.

    Modules get the names of the original project, which ComfyUI uses; updates of weights that this
    project fuses are joined. Text encoders have the prefixes ``text_encoder.``,
    ``text_encoder_2.`` and ``text_encoders.t5xxl.transformer.``; CLIP's modules outside of its
    layers, ``text_encoders.clip_l.transformer.`` and ``text_encoders.clip_g.transformer.``.

    Args:
        adapter: An adapter of LoRA, LoHa, LoKr, these with a norm, Diag-OFT, or dense differences.
            Its strength is multiplied into alpha.
        path: The file, ``….safetensors``.
        prefix: The prefix of sites that name no component, instead of ``diffusion_model``.
        names: The model: ``"sdxl"``, ``"flux"``, …, or its config in diffusers; by default, the
            model that has the adapter's modules. ``""`` keeps their names.
        base: The model that the adapter was trained on, as in `jaxmix.load`: it determines the
            model, and the sizes of weights that the adapter lacks.
        force: Whether to replace an existing file.

    Returns:
        The path.

    Raises:
        UnsupportedError: If ComfyUI has no form for an update, or an update can't be converted to
            these names; `jaxmix.to_lora` makes a LoRA of any mix.
        LayoutError: If several models fit, or there is no model ``names``.
        AdapterError: If it is not an adapter, or two of its sites are one module.
        CheckpointError: If the path is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import load_file
        >>> from jaxmix.families import LoRA
        >>> q, k, v = (LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0) for _ in "qkv")
        >>> at = "transformer_blocks.0.attn"
        >>> flux = Adapter({f"{at}.to_q": q, f"{at}.to_k": k, f"{at}.to_v": v})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_comfyui(flux, folder + "/x.safetensors", names="flux")
        ...     tensors = load_file(file)
        >>> {name: x.shape for name, x in tensors.items() if "up" in name}
        {'diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight': (6, 1)}

    Source: comfyanonymous/ComfyUI, ``comfy/lora.py``, ``comfy/weight_adapter``.
    """
    return _export(COMFYUI, adapter, path, prefix=prefix, names=names, base=base, force=force)


def export_original(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    names: Names = None,
    base: Any = None,
    force: bool = False,
) -> Path:
    """Writes an adapter under the names of the model's original project, without a prefix.

    It is `export_comfyui` without ``diffusion_model.``: ``blocks.0.self_attn.q.lora_up.weight``.

    Args:
        adapter: As in `export_comfyui`.
        path: As in `export_comfyui`.
        prefix: The prefix of sites that name no component; none by default.
        names: As in `export_comfyui`.
        base: As in `export_comfyui`.
        force: As in `export_comfyui`.

    Returns:
        The path.

    Raises:
        JaxmixError: As in `export_comfyui`.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import load_file
        >>> from jaxmix.families import LoRA
        >>> wan = Adapter({"blocks.0.attn1.to_q": LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(load_file(export_original(wan, folder + "/x.safetensors")))[1]
        'blocks.0.self_attn.q.lora_down.weight'

    Source: the projects in ``converters/names/images``.
    """
    return _export(ORIGINAL, adapter, path, prefix=prefix, names=names, base=base, force=force)


def _export(
    program: Program, adapter: Adapter, path: str | os.PathLike[str], *, force: bool, **options: Any
) -> Path:
    """Writes a file with dots in its names."""
    named = named_for(program, adapter, **options)
    full = {key: ".".join(filter(None, key)) for key in named.updates}
    sites = {full[key]: site for key, site in named.sites.items()}
    updates = {full[key]: update for key, update in named.updates.items()}
    if program is COMFYUI:
        _check(adapter.name, updates, sites, named.model)
    modules = module_tensors(replace(adapter, updates=updates), sites)
    if program is COMFYUI:
        _warn_of_norms(adapter.name, updates, sites)
    tensors = {
        f"{module}.{parameter}": tensor
        for module, factors in modules.items()
        for parameter, tensor in with_plain_bias(factors).items()
    }
    return save_tensors(path, tensors, {}, force=force)


# Norms of queries and keys whose tensor ComfyUI calls `scale`, so an adapter's key misses it.
_SCALES = {
    "flux": r"\.norm\.(query|key)_norm$|single_blocks\.\d+\.[qk]_norm$",
    "flux2": r"\.norm\.(query|key)_norm$",
    "hunyuan_video": r"\.norm\.(query|key)_norm$|[._][qk]_norm$",
}


def _check(
    adapter: str, updates: dict[str, Update], sites: dict[str, str], model: ImageModel | None
) -> None:
    """Refuses updates that ComfyUI ignores."""
    ignored = [
        f"{sites[name]}: a rescaled {update.family}, whose rescaling ComfyUI ignores"
        for name, update in updates.items()
        if isinstance(update, DiagOFT) and update.rescale is not None
    ]
    ignored += [
        f"{sites[name]}: a norm that ComfyUI does not find by its name"
        for name in updates
        if model is not None and re.search(_SCALES.get(model.name, "$^"), name)
    ]
    if ignored:
        raise UnsupportedError(
            f"{adapter}: updates that ComfyUI can't apply:{listing(ignored)}\n"
            f"{to_lora_call()} makes a LoRA of rotations; norms must be left out."
        )


def _warn_of_norms(adapter: str, updates: dict[str, Update], sites: dict[str, str]) -> None:
    """Warns of norms that ComfyUI computes differently."""
    if normed := [sites[name] for name, update in updates.items() if _is_normed_by_output(update)]:
        warnings.warn(
            f"{adapter}: ComfyUI divides DoRA's magnitude by the norm of W, not of W + Δ, so its "
            f"result differs at:{listing(normed)}\nA LoRA is exact up to its rank: "
            f"{to_lora_call()}.",
            stacklevel=4,
        )


def _is_normed_by_output(update: Update) -> bool:
    """Whether an update has DoRA's norm with an entry for each output."""
    if isinstance(update, Normed):
        return update.axis == "out"
    return getattr(update, "magnitude", None) is not None
