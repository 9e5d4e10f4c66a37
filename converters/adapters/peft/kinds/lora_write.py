"""Writes LoRA as PEFT does: plain, DoRA, KaSA, of layers and of experts."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.site_values import as_float, ranks_and_alphas
from jaxmix.converters.adapters.peft.peft_type import PeftContent
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out, refuse_unless
from jaxmix.errors import UnsupportedError
from jaxmix.families import ExpertLoRA, KaSA, LoRA

__all__ = ["write"]

Tensors = dict[str, Any]
# A site that names a layer's leaf instead of the layer comes from target_parameters.
_LEAF = ".weight"


def write(updates: Mapping[str, Any]) -> PeftContent:
    """Returns the content of PEFT's files for LoRA, DoRA, KaSA or LoRA of experts.

    Args:
        updates: ``{site: update}``.

    Returns:
        The content. Sites without a bias get zeros if others have one.

    Raises:
        UnsupportedError: If no single config of PEFT describes all of them.
    """
    is_kasa = equal_value(updates, "kasa_config", lambda update: isinstance(update, KaSA))
    layers = {site: up for site, up in updates.items() if not isinstance(up, ExpertLoRA)}
    experts = {site: up for site, up in updates.items() if isinstance(up, ExpertLoRA)}
    use_dora = bool(layers) and equal_value(layers, "use_dora", _is_dora)
    has_bias = any(_bias(update) is not None for update in layers.values())
    if use_dora and has_bias:
        problem = "PEFT has no DoRA with its own bias (lora_bias), which these have"
        refuse_unless(layers, lambda update: _bias(update) is None, problem)
    if has_bias:
        problem = "PEFT has lora_bias for all sites or none, and never for an embedding"
        refuse_unless(layers, lambda update: not getattr(update, "embedding", False), problem)
    attentions = _attentions(layers)
    tensors: Tensors = {}
    for site, update in layers.items():
        path, factor = attentions.get(site, (site.removesuffix(_LEAF), 1.0))
        layer = _layer(update, has_bias)
        if factor != 1.0:
            layer["lora_B.weight"] = layer["lora_B.weight"] * factor
        tensors |= {f"{path}.{name}": array for name, array in layer.items()}
    tensors |= _experts(experts)
    named = {attentions.get(s, (s,))[0]: u for s, u in updates.items() if not _is_inner(s, layers)}
    leaves = [path for path in named if path in experts or path.endswith(_LEAF)]
    scales = {path: update.scale for path, update in named.items()}
    fields = {
        **ranks_and_alphas(
            {path: _rank(u) for path, u in named.items()}, scales, alpha="lora_alpha"
        ),
        "fan_in_fan_out": fan_in_fan_out(layers),
        "init_lora_weights": True,
        "kasa_config": {"beta": 1e-4, "gamma": 1e-3} if is_kasa else None,
        "lora_bias": has_bias,
        "lora_dropout": 0.0,
        "target_modules": [path for path in named if path not in leaves],
        "target_parameters": leaves or None,
        "use_dora": use_dora,
        "use_rslora": False,
    }
    return PeftContent(fields, tensors)


def _rank(update: Any) -> int:
    return update.a.shape[-2]


def _is_dora(update: Any) -> bool:
    return getattr(update, "magnitude", None) is not None


def _bias(update: Any) -> Any:
    return getattr(update, "bias", None)


def _layer(update: LoRA | KaSA, has_bias: bool) -> Tensors:
    """The tensors of a layer, by PEFT's names."""
    if isinstance(update, KaSA):
        return {"lora_A.weight": update.a, "lora_B.weight": update.b, "lora_diag": update.d}
    rank, kernel = update.a.shape[0], update.kernel
    points = (1,) * len(kernel)
    out: Tensors = {}
    if update.magnitude is not None:
        shape = (1, -1, *points) if kernel else (-1,)
        out["lora_magnitude_vector"] = update.magnitude.reshape(shape)
    if update.embedding:
        return {**out, "lora_embedding_A": update.b.T, "lora_embedding_B": update.a.T}
    out["lora_A.weight"] = update.a.reshape(rank, -1, *kernel) if kernel else update.a
    out["lora_B.weight"] = update.b.reshape(-1, rank, *points)
    if has_bias:
        zeros = np.zeros(update.b.shape[:1], update.b.dtype)
        out["lora_B.bias"] = zeros if update.bias is None else update.bias
    return out


def _is_inner(site: str, layers: Mapping[str, Any]) -> bool:
    """Whether a site is the output projection of an attention whose input projection is adapted."""
    module, _, name = site.rpartition(".")
    return name == "out_proj" and f"{module}.in_proj_weight" in layers


def _attentions(layers: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """The paths of an attention's two projections in a file, and the factors for their B.

    PEFT has one rank and one alpha for both, and adds the output projection's product twice. The
    factor of B compensates for this.
    """
    paths: dict[str, tuple[str, float]] = {}
    for site, update in layers.items():
        module, _, name = site.rpartition(".")
        if name != "in_proj_weight":
            continue
        inner, outer = layers.get(f"{module}.out_proj"), as_float(update.scale)
        is_inexpressible = inner is not None and outer == 0 != as_float(inner.scale)
        if inner is None or _rank(inner) != _rank(update) or is_inexpressible:
            inner_text = "none" if inner is None else f"rank {_rank(inner)}, scale {inner.scale}"
            raise UnsupportedError(
                f"{site}: PEFT adapts both projections of an attention with one rank. Found "
                f"{inner_text} at {module}.out_proj, expected rank {_rank(update)}"
                f"{', scale 0' if is_inexpressible else ''}. Merge it instead"
            )
        paths[site] = (module, 1.0)
        factor = as_float(inner.scale) / (2 * outer) if outer else 0.5
        paths[f"{module}.out_proj"] = (f"{module}.base_layer.out_proj", factor)
    return paths


def _experts(experts: Mapping[str, ExpertLoRA]) -> Tensors:
    """The tensors of experts; each wrapper around a module lengthens the key by ``base_layer``."""
    remaining = Counter(site.rpartition(".")[0] for site in experts)
    out: Tensors = {}
    for site, update in experts.items():
        module = site.rpartition(".")[0]
        remaining[module] -= 1
        path = module + ".base_layer" * remaining[module]
        count, rank, size = update.a.shape
        out[f"{path}.lora_A.weight"] = update.a.reshape(count * rank, size)
        out[f"{path}.lora_B.weight"] = update.b.transpose(1, 2, 0).reshape(-1, rank * count)
    return out
