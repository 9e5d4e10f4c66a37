"""Reads files of kohya, LyCORIS and diffusers, and folders of mlx-lm, by their descriptions."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ..case import Adapter
from ..tensorfile import Tensor
from .formulas import Change, added, kron_delta, loha_delta, lora_delta
from .names import expect, floats, is_number, json_object, matrices, tensors_of, without_wrappers

__all__ = ["read_diffusers", "read_kohya", "read_mlx"]

_NAMES = {
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_A.weight": "down",
    "lora_B.weight": "up", "lora.down.weight": "down", "lora.up.weight": "up", "lora_A": "down",
    "lora_B": "up", "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "alpha": "alpha", "dora_scale": "dora_scale", "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{f"hada_w{i}_{x}": f"hada_w{i}_{x}" for i in "12" for x in "ab"},
    **{f"lokr_w{i}{x}": f"lokr_w{i}{x}" for i in "12" for x in ("", "_a", "_b")},
}  # fmt: skip
_KEY = re.compile(rf"(.+?)\.(?:({'|'.join(map(re.escape, sorted(_NAMES, key=len)[::-1]))}))")
_PREFIX = re.compile(r"(?:lora_unet|lora_transformer|lora_prior_unet|lora_te[123]?|lycoris)_")
_MODELS = ("unet_", "transformer_", "diffusion_model_", "model_diffusion_model_", "prior_")
# LyCORIS adds the smallest step of float32 to DoRA's norm.
_EPS = float(np.finfo(np.float32).eps)

Modules = Mapping[str, tuple[int, ...]]


def _sorted(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors by module, under one name each."""
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        # As in the state of a model in training: with an adapter's name.
        plain = re.sub(r"(\.lora_[AB])\.(?!weight$|bias$)[^.]+(?=\.weight$|$)", r"\1", key)
        match = _KEY.fullmatch(plain)
        expect(match, f"{key} belongs to nothing")
        assert match
        site, name = without_wrappers(match[1]), _NAMES[match[2]]
        stored = sites.setdefault(site, {}).setdefault(name, tensor)
        # Equal duplicates are one tensor under two names.
        is_equal = stored is tensor or np.array_equal(stored.numbers, tensor.numbers)
        expect(is_equal, f"{key} is there twice")
    return sites


def read_kohya(adapter: Adapter, files: Mapping[str, bytes], modules: Modules) -> dict[str, Change]:
    """Reads a file whose module names have underscores for dots. See `oracle.peft.read`."""
    tensors, _ = tensors_of(files, adapter.path)
    spelled: dict[str, list[str]] = {}
    for module in modules:
        spelled.setdefault(module.replace(".", "_"), []).append(module)
    changes: dict[str, Change] = {}
    for site, factors in _sorted(tensors).items():
        prefix = _PREFIX.match(site)
        expect(prefix, f"{site} has no prefix")
        assert prefix
        # The name of a pipeline's model may precede its modules.
        bare_name = site[prefix.end() :]
        fitting = [m for part in ("", *_MODELS) for m in spelled.get(part + bare_name, [])]
        expect(len(fitting) == 1 and fitting[0] not in changes, f"{site}: {fitting}")
        changes[fitting[0]] = _built(site, factors, modules[fitting[0]], adapter.strength)
    expect(changes, "nothing in it")
    return changes


def read_diffusers(
    adapter: Adapter, files: Mapping[str, bytes], modules: Modules
) -> dict[str, Change]:
    """Reads a file of a pipeline's parts, possibly with PEFT's fields in its metadata."""
    tensors, metadata = tensors_of(files, adapter.path)
    config: dict[str, Any] = {}
    if "lora_adapter_metadata" in metadata:
        config = json_object({"x": metadata["lora_adapter_metadata"].encode()}, "x")
    changes: dict[str, Change] = {}
    for key, factors in _sorted(tensors).items():
        part, _, site = key.partition(".")
        expect(part in ("unet", "transformer", "diffusion_model"), f"{key}: no part of a pipeline")
        expect(site in modules and site not in changes, f"{key}: no module of that name, or twice")
        scale = None
        part_config = {name: value for name, value in config.items() if name.startswith(f"{part}.")}
        if part_config:
            rank, alpha = (
                _by_pattern(part_config, f"{part}.{patterns}", f"{part}.{field}", site)
                for patterns, field in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
            )
            expect("alpha" not in factors, f"{key}: alpha twice")
            expect(is_number(rank) and is_number(alpha) and rank >= 1, f"{key}: rank or alpha")
            scale = alpha / (math.sqrt(rank) if part_config.get(f"{part}.use_rslora") else rank)
            expect(factors["down"].shape[:1] == (rank,) if "down" in factors else 0, "rank")
        changes[site] = _built(key, factors, modules[site], adapter.strength, scale)
    expect(changes, "nothing in it")
    return changes


def _by_pattern(config: Mapping[str, Any], patterns: str, field: str, site: str) -> Any:
    """Returns a field's value for one module; invalid patterns match nothing."""
    by_pattern = config.get(patterns)
    for pattern, value in by_pattern.items() if isinstance(by_pattern, dict) else ():
        with suppress(re.error):
            if re.match(rf"(.*\.)?({pattern})$", site):
                return value
    return config.get(field)


def _built(
    site: str, factors: Mapping[str, Tensor], shape: tuple[int, ...], strength: float,
    scale: float | None = None,
) -> Change:  # fmt: skip
    """Returns the change that the tensors of one module make."""
    by_name = {
        name: tensor.numbers.astype(np.float64)
        if name == "alpha"
        else floats(tensor, f"{site}.{name}")
        for name, tensor in factors.items()
    }
    alpha, norm = by_name.pop("alpha", None), by_name.pop("dora_scale", None)
    expect(alpha is None or (alpha.size == 1 and np.isfinite(alpha).all()), f"{site}: alpha")
    size = (shape[0], math.prod(shape[1:]))
    rank, build = _family(site, by_name, shape)
    if scale is None:
        number = 0.0 if alpha is None else float(alpha.reshape(()))
        scale = number / rank if number and rank else 1.0
    delta = build(strength * scale)
    expect(delta(np.dtype(np.float64)).shape == size, f"{site}: the shape")
    if norm is None:
        return added(delta)
    by_output = norm.ndim > 1 and norm.shape[0] == norm.size == shape[0]
    by_input = not by_output and norm.shape == (1, *shape[1:]) and len(shape) == 2
    expect(by_output or by_input, f"{site}: dora_scale {norm.shape}")
    expect(strength == 1, "a strength")
    return added(delta, magnitude=norm.reshape(-1), eps=_EPS, axis=1 if by_output else 0)


def _family(
    site: str, factors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[int, Any]:
    """Returns the rank of one module's factors, and a function from a scale to Δ."""
    names = set(factors)
    if names == {"down", "up"}:
        down, up = factors["down"], factors["up"]
        expect(down.ndim in (2, 3, 4, 5) and down.size and up.size, f"{site}: down {down.shape}")
        rank = down.shape[0]
        fits = up.ndim in (2, down.ndim) and up.shape[1:] == (rank,) + (1,) * (up.ndim - 2)
        expect(fits, f"{site}: up {up.shape}")
        expect(_kernel(down.shape) == _kernel(shape), f"{site}: kernel")
        a, b = down.reshape(rank, -1), up.reshape(-1, rank)
        return rank, lambda scale: lora_delta(a, b, scale)
    if names == {f"hada_w{i}_{x}" for i in "12" for x in "ab"}:
        matrices(site, *factors.values())
        rank = factors["hada_w1_b"].shape[0]
        expect(all(factors[f"hada_w{i}_a"].shape[1] == rank for i in "12"), f"{site}: ranks")
        expect(all(factors[f"hada_w{i}_b"].shape[0] == rank for i in "12"), f"{site}: ranks")
        expect(factors["hada_w1_a"].shape == factors["hada_w2_a"].shape, f"{site}: shapes")
        expect(factors["hada_w1_b"].shape == factors["hada_w2_b"].shape, f"{site}: shapes")
        return rank, lambda scale: loha_delta(factors, scale)
    sides, ranks = [], set()
    for i in "12":
        full_name, pair = f"lokr_w{i}", (f"lokr_w{i}_a", f"lokr_w{i}_b")
        needed = (full_name,) if full_name in factors else pair
        expect(all(name in factors for name in needed), f"{site}: {sorted(factors)}")
        sides.append(tuple(factors[name] for name in needed))
        names -= set(needed)
        if len(needed) == 2 and i == "2" and factors[needed[1]].ndim > 2:  # (r, in, *kernel)
            sides[-1] = factors[needed[0]], factors[needed[1]].reshape(len(factors[needed[1]]), -1)
        matrices(site, *sides[-1])
        if len(needed) == 2:
            expect(sides[-1][0].shape[1] == sides[-1][1].shape[0], f"{site}: ranks")
            ranks.add(sides[-1][1].shape[0])
    expect(not names and len(ranks) < 2, f"{site}: {sorted(factors)}")
    return (ranks.pop() if ranks else 0), lambda scale: kron_delta(sides[0], sides[1], scale)


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a convolution's kernel, without trailing axes of length one."""
    kernel = list(shape[2:])
    while kernel and kernel[-1] == 1:
        kernel.pop()
    return tuple(kernel)


def read_mlx(adapter: Adapter, files: Mapping[str, bytes], modules: Modules) -> dict[str, Change]:
    """Reads mlx-lm's folder: ``W + scale · (A B)ᵀ`` of A (in, r) and B (r, out), or its DoRA."""
    config = json_object(files, f"{adapter.path}/adapter_config.json")
    tensors, _ = tensors_of(files, f"{adapter.path}/adapters.safetensors")
    kind = config.get("fine_tune_type", "lora")
    expect(kind in ("lora", "dora"), f"fine_tune_type {kind!r}")
    fields = config.get("lora_parameters")
    expect(isinstance(fields, dict) and is_number(fields.get("scale")), "no scale")
    assert isinstance(fields, dict)
    expect(fields.get("alpha") in (None, fields.get("rank")), "alpha beside scale")
    names = {"lora_a", "lora_b", *({"m"} if kind == "dora" else set())}
    sites: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        site, _, name = without_wrappers(key).rpartition(".")
        expect(site and name in names and name not in sites.get(site, {}), f"{key} is unknown")
        sites.setdefault(site, {})[name] = floats(tensor, key)
    changes = {}
    for site, factors in sites.items():
        expect(site in modules and set(factors) == names, f"{site}: {sorted(factors)}")
        a, b = factors["lora_a"], factors["lora_b"]
        matrices(site, a, b)
        out, size = modules[site][0], math.prod(modules[site][1:])
        expect(a.shape == (size, b.shape[0]) and b.shape == (a.shape[1], out), f"{site}: shapes")
        expect("m" not in factors or factors["m"].shape == (out,), f"{site}: m")
        delta = lora_delta(a.T, b.T, adapter.strength * float(fields["scale"]))
        changes[site] = added(delta, magnitude=factors.get("m"))
    return changes
