"""PEFT's keys: every tensor given to a site.

A key is ``base_model.model.<module path>.<parameter>``, and `plain` removes what else may be in it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.kinds import KINDS
from jaxmix.converters.adapters.peft.plain import PlainKey, any_of, plain_keys
from jaxmix.converters.adapters.peft.tensors import FLOATS
from jaxmix.converters.adapters.peft.wrapped import INNER, parameters, stripped
from jaxmix.errors import CheckpointError, UnsupportedError, listing

__all__ = ["Sites", "plain_leaf", "sort_keys"]

# How the parameters of any type begin: ``lora_``, ``hada_``, …
_MARKS = tuple(
    sorted({name.partition("_")[0] + "_" for kind in KINDS.values() for name in kind.parameters})
)
# What training alone needs: VeLoRA's direction along which it compresses activations for the
# backward pass, MonteCLoRA's distribution.
_FOR_TRAINING = re.compile(r"\.lora_velora_embed(\.\w+)?$|\.lora_monteclora_sampler(\.\w+){1,2}$")
# What `trainable_token_indices` adds to an embedding.
_TOKENS = ".token_adapter.trainable_tokens_delta"
# PEFT's wrapper of modules_to_save, of which `plain_keys` leaves only what PEFT reads.
_WRAPPED = re.compile(r"\.original_module(?=\.)")
# The same wrapper in a file that `plain_keys` does not see.
_WHOLE = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|original_module)(?=\.)")


@dataclass
class Sites:
    """A file's tensors by site: NumPy arrays, which the families take for jax's.

    Args:
        factors: ``{site: {parameter: array}}``, the family's own; where LoRA's wrappers mean more
            by it (`jaxmix.converters.adapters.peft.wrapped`), by the path in the key.
        saved: ``{site: {"weight" or "bias": array}}``, leaves of modules that were trained whole.
        base: ``{site: {"weight": array}}``, copies of the base's weights.
        tokens: ``{site: {"trainable_tokens_delta": array}}``, rows of embeddings.
        shared: ``{parameter: array}``, what the type stores once for the whole model.
    """

    factors: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)


class _Problem(NamedTuple):
    """What is wrong with a key, and whether it is a thing that jaxmix merely does not do."""

    text: str
    is_unsupported: bool = False


_Place = tuple[str, str, str]


def sort_keys(
    tensors: Mapping[str, np.ndarray], config: Config, path: Path, modules: Collection[str] = ()
) -> Sites:
    """Gives every key to a site.

    Args:
        tensors: the file's.
        config: the adapter's.
        path: the file, for messages.
        modules: the names of the base's modules, if known.

    Returns:
        The tensors by site.

    Raises:
        CheckpointError: if keys belong to nothing or collide; all are listed.
        UnsupportedError: if keys belong to something that jaxmix does not do; all are listed.
    """
    sites = Sites()
    keys: dict[_Place, str] = {}
    problems: list[tuple[str, _Problem]] = []
    kind = KINDS[config.family]
    copies: dict[str, tuple[str, np.ndarray]] = {}
    for key, plain in plain_keys(tensors, config, path, modules).items():
        array = tensors[key]
        shared = plain.path.removeprefix("base_model.").removeprefix("model.")
        if kind.shared and any_of(kind.shared).fullmatch(shared):
            if shared in sites.shared:
                problems.append((key, _Problem(f"{shared} is there twice; keep one of the two")))
            sites.shared[shared] = array
            continue
        if config.family == "LORA" and _FOR_TRAINING.search(plain.path):
            continue
        place = _place(plain, array, config)
        if isinstance(place, _Problem):
            if kind.shared and (found := _parameter(kind.shared).fullmatch(plain.path)):
                copies[key] = found[2], array
            else:
                problems.append((key, place))
        elif place in keys:
            problems.append((key, _Problem(f"the same as {keys[place]}; keep one of the two")))
        else:
            keys[place] = key
            group, site, name = place
            getattr(sites, group).setdefault(site, {})[name] = array
    # While in training each module has what the type stores once.
    for key, (name, array) in copies.items():
        if not np.array_equal(sites.shared.setdefault(name, array), array):
            problems.append(
                (key, _Problem(f"not the model's {name}, of which it should be a copy"))
            )
    for (group, site, name), key in keys.items():
        is_leaf = group in ("saved", "base")
        if is_leaf and site in sites.factors and ".base_layer." not in key:
            text = f"PEFT reads {site}.base_layer.{name} of a module with factors; rename it"
            problems.append((key, _Problem(text)))
    if problems:
        is_mild = all(problem.is_unsupported for _, problem in problems)
        raise (UnsupportedError if is_mild else CheckpointError)(
            f"{path}: keys that jaxmix can't use in a {config.family} adapter:"
            f"{listing(f'{key}: {problem.text}' for key, problem in problems)}\n"
            f"Expected <module>.<parameter> with one of {', '.join(kind.parameters)}, or "
            "leaves of modules_to_save, as save_pretrained writes them."
        )
    return sites


def plain_leaf(path: str) -> tuple[str, str] | None:
    """The site and the leaf of a key that names a module's own weight or bias.

    Args:
        path: The key, without PEFT's prefix (`jaxmix.placement.names.unwrapped`).

    Returns:
        The site and ``"weight"`` or ``"bias"``; None if the key is an adapter's parameter, or names
        neither.
    """
    module, _, leaf = _WHOLE.sub("", path).rpartition(".")
    if leaf not in ("weight", "bias") or module.rpartition(".")[2].startswith(_MARKS):
        return None
    return (site, leaf) if (site := stripped(module)) else None


def _place(plain: PlainKey, array: np.ndarray, config: Config) -> _Place | _Problem:
    """Group, site and parameter of a key; or what is wrong with it."""
    path = plain.path
    if path.endswith("lora_magnitude_vector.weight"):
        path = path.removesuffix(".weight")
    kind = KINDS[config.family]
    if found := _parameter(kind.parameters).fullmatch(path):
        site, name = found.groups()
        if array.dtype not in FLOATS and name not in kind.integers:
            return _Problem(f"{array.dtype}, expected floats")
        return _at_site(site, "factors", name, config)
    if path.endswith(_TOKENS) and config.values.get("trainable_token_indices"):
        return "tokens", path.removesuffix(_TOKENS), "trainable_tokens_delta"
    if _WRAPPED.search(path):
        read = _WRAPPED.sub("", path)
        return _Problem(f"a part of PEFT's wrapper, but {read}, which PEFT reads, is not there")
    return _leaf(plain, array, config)


@cache
def _parameter(names: tuple[str, ...]) -> re.Pattern[str]:
    """An expression for the site and the parameter of a key; ``*`` in a name is a number."""
    return re.compile(rf"(.+?)\.{any_of(names).pattern}")


def _leaf(plain: PlainKey, array: np.ndarray, config: Config) -> _Place | _Problem:
    """Where a leaf belongs that was saved whole."""
    path = plain.path
    is_saved = plain.is_saved or _is_saved(path, config.values.get("modules_to_save") or ())
    if not is_saved and any(part.startswith(_MARKS) for part in path.split(".")[-2:]):
        return _Problem("another family's parameter, or one that this version does not know")
    if array.dtype not in FLOATS:
        return _Problem(f"a buffer of {array.dtype}, which jaxmix can't mix; leave it out", True)
    site, _, leaf = path.rpartition(".")
    is_base = site.endswith(".base_layer") and array.ndim > 1
    if leaf == "weight" and (is_base or (array.ndim == 2 and not is_saved)):
        return _at_site(site, "base", leaf, config)
    if leaf in ("weight", "bias") and site:
        return _at_site(site, "saved", leaf, config)
    return ("saved", path, "weight") if is_saved else _Problem("no parameter of this family")


def _is_saved(path: str, names: list[str] | tuple[()]) -> bool:
    """Whether a leaf lies in one of modules_to_save, found as PEFT does, by the end of its path."""
    return any(f"{name}." in path for name in names)


def _at_site(module: str, group: str, name: str, config: Config) -> _Place | _Problem:
    """The site of a module path; of factors the path, where LoRA's wrappers mean more by it."""
    site = stripped(module)
    if INNER not in site and not (group == "factors" and parameters(config, site)):
        return group, site, name
    is_attention = site.endswith(f"{INNER}.out_proj") and site.count(INNER) == 1
    if config.family == "LORA" and group == "factors" and (is_attention or INNER not in site):
        return group, module if INNER not in site else site, name
    text = f"a part of a wrapped module of a kind that jaxmix does not know in {config.family}"
    return _Problem(f"{text}; leave that module out", True)
