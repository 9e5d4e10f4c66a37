"""Sorts the tensors of a PEFT file by site.

A key is ``base_model.model.<module path>.<parameter>``; `plain` removes everything else from it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES
from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.plain import PlainKey, any_of, plain_keys
from jaxmix.converters.adapters.peft.wrapped import INNER, parameters, stripped
from jaxmix.errors import CheckpointError, UnsupportedError, listing

__all__ = ["Sites", "sort_keys", "split_leaf"]

# The prefixes of the parameters of all types: ``lora_``, ``hada_``, …
_MARKS = tuple(
    sorted(
        {name.partition("_")[0] + "_" for kind in PEFT_TYPES.values() for name in kind.parameters}
    )
)
# Tensors that only training needs: VeLoRA's direction for compressing activations for the backward
# pass, MonteCLoRA's distribution.
_FOR_TRAINING = re.compile(r"\.lora_velora_embed(\.\w+)?$|\.lora_monteclora_sampler(\.\w+){1,2}$")
# The module that `trainable_token_indices` adds to an embedding.
_TOKENS = ".token_adapter.trainable_tokens_delta"
# PEFT's wrapper of modules_to_save, in keys that `plain_keys` keeps and PEFT does not read.
_WRAPPED = re.compile(r"\.original_module(?=\.)")
# The same wrapper in a file that does not go through `plain_keys`.
_SAVED_MODULE = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|original_module)(?=\.)")


@dataclass
class Sites:
    """A file's tensors by site, as NumPy arrays.

    Args:
        factors: ``{site: {parameter: array}}``, the parameters of the type. By the path in the key
            where LoRA's wrappers are in it (`jaxmix.converters.adapters.peft.wrapped`).
        saved: ``{site: {"weight" or "bias": array}}``, leaves of fully trained modules.
        base: ``{site: {"weight": array}}``, copies of the base's weights.
        tokens: ``{site: {"trainable_tokens_delta": array}}``, rows of embeddings.
        shared: ``{parameter: array}``, the tensors stored once for the whole model.
    """

    factors: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)


class _Problem(NamedTuple):
    """The problem with a key, and whether it is valid but unsupported."""

    text: str
    is_unsupported: bool = False


_Place = tuple[str, str, str]


def sort_keys(
    tensors: Mapping[str, np.ndarray], config: Config, path: Path, modules: Collection[str] = ()
) -> Sites:
    """Assigns every key to a site.

    Args:
        tensors: The file's tensors.
        config: The adapter's config.
        path: The file, for messages.
        modules: The names of the base's modules, if known.

    Returns:
        The tensors by site.

    Raises:
        CheckpointError: If keys are unknown or collide; all are listed.
        UnsupportedError: If keys belong to an unsupported feature; all are listed.
    """
    sites = Sites()
    keys: dict[_Place, str] = {}
    problems: list[tuple[str, _Problem]] = []
    kind = PEFT_TYPES[config.family]
    copies: dict[str, tuple[str, np.ndarray]] = {}
    for key, plain in plain_keys(tensors, config, path, modules).items():
        array = tensors[key]
        shared = plain.path.removeprefix("base_model.").removeprefix("model.")
        if kind.shared and any_of(kind.shared).fullmatch(shared):
            if shared in sites.shared:
                problems.append((key, _Problem(f"{shared} occurs twice; keep one of the two")))
            sites.shared[shared] = array
            continue
        if config.family == "LORA" and _FOR_TRAINING.search(plain.path):
            continue
        place = _place(plain, array, config)
        if isinstance(place, _Problem):
            if kind.shared and (match := _parameter(kind.shared).fullmatch(plain.path)):
                copies[key] = match[2], array
            else:
                problems.append((key, place))
        elif place in keys:
            problems.append((key, _Problem(f"the same as {keys[place]}; keep one of the two")))
        else:
            keys[place] = key
            group, site, name = place
            getattr(sites, group).setdefault(site, {})[name] = array
    # During training each module has a copy of the shared tensors.
    for key, (name, array) in copies.items():
        if not np.array_equal(sites.shared.setdefault(name, array), array):
            problems.append((key, _Problem(f"not a copy of the model's {name}, as expected")))
    for (group, site, name), key in keys.items():
        is_leaf = group in ("saved", "base")
        if is_leaf and site in sites.factors and ".base_layer." not in key:
            text = f"for a module with factors PEFT reads {site}.base_layer.{name}; rename it"
            problems.append((key, _Problem(text)))
    if problems:
        is_unsupported = all(problem.is_unsupported for _, problem in problems)
        raise (UnsupportedError if is_unsupported else CheckpointError)(
            f"{path}: keys that jaxmix can't use in a {config.family} adapter:"
            f"{listing(f'{key}: {problem.text}' for key, problem in problems)}\n"
            f"Expected <module>.<parameter> with one of {', '.join(kind.parameters)}, or "
            "leaves of modules_to_save, as save_pretrained writes them."
        )
    return sites


def split_leaf(path: str) -> tuple[str, str] | None:
    """Splits a key that names a module's own weight or bias into site and leaf.

    Args:
        path: The key, without PEFT's prefix (`jaxmix.placement.names.unwrapped`).

    Returns:
        The site and ``"weight"`` or ``"bias"``; None if the key is an adapter's parameter, or names
        neither.
    """
    module, _, leaf = _SAVED_MODULE.sub("", path).rpartition(".")
    if leaf not in ("weight", "bias") or module.rpartition(".")[2].startswith(_MARKS):
        return None
    return (site, leaf) if (site := stripped(module)) else None


def _place(plain: PlainKey, array: np.ndarray, config: Config) -> _Place | _Problem:
    """Returns the group, site and parameter of a key, or the problem with it."""
    path = plain.path
    if path.endswith("lora_magnitude_vector.weight"):
        path = path.removesuffix(".weight")
    kind = PEFT_TYPES[config.family]
    if match := _parameter(kind.parameters).fullmatch(path):
        site, name = match.groups()
        if array.dtype not in FACTOR_DTYPES and name not in kind.integers:
            return _Problem(f"{array.dtype}, expected floats")
        return _at_site(site, "factors", name, config)
    if path.endswith(_TOKENS) and config.values.get("trainable_token_indices"):
        return "tokens", path.removesuffix(_TOKENS), "trainable_tokens_delta"
    if _WRAPPED.search(path):
        read = _WRAPPED.sub("", path)
        return _Problem(f"a part of PEFT's wrapper, but {read}, which PEFT reads, is missing")
    return _leaf(plain, array, config)


@cache
def _parameter(names: tuple[str, ...]) -> re.Pattern[str]:
    """Compiles an expression for the site and the parameter of a key; ``*`` is a number."""
    return re.compile(rf"(.+?)\.{any_of(names).pattern}")


def _leaf(plain: PlainKey, array: np.ndarray, config: Config) -> _Place | _Problem:
    """The group, site and leaf of a key that is not a parameter of the type."""
    path = plain.path
    is_saved = plain.is_saved or _is_saved(path, config.values.get("modules_to_save") or ())
    if not is_saved and any(part.startswith(_MARKS) for part in path.split(".")[-2:]):
        return _Problem("a parameter of another type, or one that this version does not know")
    if array.dtype not in FACTOR_DTYPES:
        return _Problem(f"a buffer of {array.dtype}, which jaxmix can't mix; remove it", True)
    site, _, leaf = path.rpartition(".")
    is_base = site.endswith(".base_layer") and array.ndim > 1
    if leaf == "weight" and (is_base or (array.ndim == 2 and not is_saved)):
        return _at_site(site, "base", leaf, config)
    if leaf in ("weight", "bias") and site:
        return _at_site(site, "saved", leaf, config)
    return ("saved", path, "weight") if is_saved else _Problem("not a parameter of this type")


def _is_saved(path: str, names: list[str] | tuple[()]) -> bool:
    """Whether a leaf is in one of modules_to_save, which PEFT finds by the end of its path."""
    return any(f"{name}." in path for name in names)


def _at_site(module: str, group: str, name: str, config: Config) -> _Place | _Problem:
    """The site of a module path; the path itself for factors with LoRA's wrappers in the path."""
    site = stripped(module)
    if INNER not in site and not (group == "factors" and parameters(config, site)):
        return group, site, name
    is_attention = site.endswith(f"{INNER}.out_proj") and site.count(INNER) == 1
    if config.family == "LORA" and group == "factors" and (is_attention or INNER not in site):
        return group, module if INNER not in site else site, name
    text = f"part of a wrapped module of an unknown kind in {config.family}"
    return _Problem(f"{text}; remove that module", True)
