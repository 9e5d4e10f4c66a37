"""Finds the pairs of factors in a tree, and the library from which each comes."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.placement.names import leaf_names

__all__ = ["Origin", "Pair", "is_factor", "is_named_factor", "pairs_of"]

Origin = Literal["qwix", "einsum", "openpi", "flax", "plain"]

_NAMED = re.compile(r"(?P<leaf>.+?)(?:_lora_(?P<new>[ab])|\.lora_(?P<old>[ab])\.kernel)")
_BARE = re.compile(r"(?P<module>.+?)\.lora_(?P<bare>[ab])")
# openpi's einsums, of a first and a second expert; and its MLP, whose factors have the leaf's name.
_EINSUM = re.compile(r"(q|kv|qkv|attn_vec)_einsum(_\d+)?")
_MLP = re.compile(r"(.*\.)?mlp(_\d+)?\.(gating_einsum|linear)")


@dataclass(frozen=True)
class Pair:
    """The two factors of a leaf.

    Args:
        leaf: The path of the leaf that they update, or of its module.
        origin: "qwix", which scales by alpha/rank; "einsum" of openpi, likewise; openpi's MLP
            ("openpi") and ``flax.nnx.LoRA`` ("flax"), which have no scale; or "plain" if the tree
            does not determine it.
        a: (in …, r).
        b: (r, out …).
    """

    leaf: str
    origin: Origin
    a: Any
    b: Any


def is_named_factor(key: str) -> bool:
    """Returns whether a path is that of a factor with its leaf's name, as of qwix and MaxText."""
    return _NAMED.fullmatch(_dotted(key)) is not None


def is_factor(key: str) -> bool:
    """Returns whether a path is that of a factor, with its leaf's name or without."""
    return is_named_factor(key) or _BARE.fullmatch(_dotted(key)) is not None


def pairs_of(tree: Any, where: str, others: Collection[str] = ()) -> list[Pair]:
    """Returns all pairs of a tree; leaves that are not factors are ignored.

    Args:
        tree: A params tree, an ``nnx.State`` as pure dict, or a flat dict of paths.
        where: The tree, for messages.
        others: The paths of further leaves that are not in the tree.

    Returns:
        The pairs, in the order of the tree.

    Raises:
        CheckpointError: If a factor lacks its partner or is not of floats, or there are none.
        AdapterError: If a number is not finite.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [_dotted(x).removesuffix(".value") for x in leaf_names([path for path, _ in leaves])]
    by_leaf: dict[tuple[str, bool], dict[str, Any]] = {}
    others = [_dotted(name).removesuffix(".value") for name in others]
    unknown: list[str] = []
    for name, (_, array) in zip(names, leaves, strict=True):
        if match := _NAMED.fullmatch(name):
            leaf = match["leaf"] if match["new"] else f"{match['leaf']}.kernel"
            by_leaf.setdefault((leaf, True), {})[match["new"] or match["old"]] = array
        elif match := _BARE.fullmatch(name):
            by_leaf.setdefault((match["module"], False), {})[match["bare"]] = array
        elif re.search(r"(^|[._])lora_", name):
            unknown.append(f"{name} is neither <leaf>_lora_a nor <leaf>_lora_b, nor a lora_a")
        else:
            others.append(name)
    if unknown:
        raise CheckpointError(
            f"{where}: leaves of LoRA with unknown names:{listing(unknown)}\nRemove or rename them."
        )
    if not by_leaf:
        raise CheckpointError(
            f"{where} has no leaves of qwix's LoRA, expected <leaf>_lora_a and <leaf>_lora_b, or "
            "lora_a and lora_b of a module. Was it saved without the LoRA parameters?"
        )
    _check(by_leaf, where)
    is_openpi = any(_is_einsum(module) for module, is_named in by_leaf if not is_named)
    base = {other.removeprefix("params.") for other in others}
    pairs: list[Pair] = []
    for (path, is_named), factors in by_leaf.items():
        leaf = path.removeprefix("params.")
        origin: Origin = "openpi" if is_openpi and _MLP.fullmatch(leaf) else "qwix"
        if not is_named:
            leaf, origin = _bare_origin(leaf, base)
        pairs.append(Pair(leaf, origin, np.asarray(factors["a"]), np.asarray(factors["b"])))
    return pairs


def _bare_origin(module: str, base: Collection[str]) -> tuple[str, Origin]:
    """The module of factors without a leaf's name, and their origin."""
    if _is_einsum(module):
        return module, "einsum"
    parent, _, last = module.rpartition(".")
    if last == "lora" and (not base or f"{parent}.kernel" in base):  # nnx.LoRALinear
        return parent, "flax"
    if any(name.startswith(f"{module}.base_module.") for name in base):  # nnx.LoRA around it
        return module, "flax"
    return module, "plain"


def _is_einsum(module: str) -> bool:
    return _EINSUM.fullmatch(module.rpartition(".")[2]) is not None


def _check(by_leaf: dict[tuple[str, bool], dict[str, Any]], where: str) -> None:
    """Refuses factors that lack their partner, or that are not of finite floats."""
    if single := [
        f"{leaf}: only lora_{x}" for (leaf, _), p in by_leaf.items() for x in p if len(p) < 2
    ]:
        raise CheckpointError(f"{where}: factors without their partner:{listing(single)}")
    for (leaf, is_named), pair in by_leaf.items():
        for x, value in pair.items():
            array, name = np.asarray(value), f"{leaf}{'_' if is_named else '.'}lora_{x}"
            if array.dtype not in FACTOR_DTYPES:
                raise CheckpointError(f"{where}: {name} has dtype {array.dtype}, expected floats")
            if not np.isfinite(array.astype(np.float64)).all():
                raise AdapterError(
                    f"{where}: {name} has numbers that are NaN or infinite. Take an earlier "
                    "checkpoint."
                )


def _dotted(path: str) -> str:
    """Replaces the separators of a path by dots."""
    return path.replace("/", ".")
