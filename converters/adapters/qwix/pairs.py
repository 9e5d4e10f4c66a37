"""The pairs of factors in a tree: which leaves they are, and whose way of LoRA they follow."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from jaxmix.converters.adapters.peft.tensors import FLOATS
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.placement.names import leaf_names

__all__ = ["Pair", "Way", "is_factor", "is_named_factor", "pairs_of"]

Way = Literal["qwix", "einsum", "openpi", "flax", "plain"]

_NAMED = re.compile(r"(?P<leaf>.+?)(?:_lora_(?P<new>[ab])|\.lora_(?P<old>[ab])\.kernel)")
_BARE = re.compile(r"(?P<module>.+?)\.lora_(?P<bare>[ab])")
# openpi's einsums, of a first and a second expert; and its MLP, whose factors have the leaf's name.
_EINSUM = re.compile(r"(q|kv|qkv|attn_vec)_einsum(_\d+)?")
_MLP = re.compile(r"(.*\.)?mlp(_\d+)?\.(gating_einsum|linear)")


@dataclass(frozen=True)
class Pair:
    """The two factors of a leaf.

    Args:
        leaf: the path of the leaf that they are for, or of its module.
        way: who made them: "qwix" scales by alpha/rank; so does openpi's "einsum", but not its MLP,
            which is "openpi"; ``flax.nnx.LoRA`` ("flax") has no scale; "plain" is of a tree that
            does not tell.
        a: (in …, r).
        b: (r, out …).
    """

    leaf: str
    way: Way
    a: Any
    b: Any


def is_named_factor(key: str) -> bool:
    """Whether a path is that of a factor with its leaf's name, as qwix and MaxText write them."""
    return _NAMED.fullmatch(_dotted(key)) is not None


def is_factor(key: str) -> bool:
    """Whether a path is that of a factor, with its leaf's name or without."""
    return is_named_factor(key) or _BARE.fullmatch(_dotted(key)) is not None


def pairs_of(tree: Any, where: str, others: Collection[str] = ()) -> list[Pair]:
    """All pairs of a tree; leaves that are no factors are left aside.

    Args:
        tree: a params tree, an ``nnx.State`` as pure dict, or a flat dict of paths.
        where: what the tree is, for messages.
        others: the paths of leaves beside those of the tree.

    Returns:
        The pairs, in the order of the tree.

    Raises:
        CheckpointError: if a factor is alone, not of floats, or none is there.
        AdapterError: if a number is not finite.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [_dotted(x).removesuffix(".value") for x in leaf_names([path for path, _ in leaves])]
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    others = [_dotted(name).removesuffix(".value") for name in others]
    strange: list[str] = []
    for name, (_, array) in zip(names, leaves, strict=True):
        if match := _NAMED.fullmatch(name):
            leaf = match["leaf"] if match["new"] else f"{match['leaf']}.kernel"
            found.setdefault((leaf, True), {})[match["new"] or match["old"]] = array
        elif match := _BARE.fullmatch(name):
            found.setdefault((match["module"], False), {})[match["bare"]] = array
        elif re.search(r"(^|[._])lora_", name):
            strange.append(f"{name} is neither <leaf>_lora_a nor <leaf>_lora_b, or a lora_a")
        else:
            others.append(name)
    if strange:
        raise CheckpointError(
            f"{where}: leaves of LoRA that can't be read:{listing(strange)}\nTake them out, or "
            "rename them."
        )
    if not found:
        raise CheckpointError(
            f"{where} has no leaves of qwix's LoRA, expected <leaf>_lora_a and <leaf>_lora_b, or "
            "lora_a and lora_b of a module. Was it saved without the LoRA parameters?"
        )
    _check(found, where)
    is_openpi = any(_is_einsum(module) for module, is_named in found if not is_named)
    base = {other.removeprefix("params.") for other in others}
    pairs: list[Pair] = []
    for (path, is_named), factors in found.items():
        leaf = path.removeprefix("params.")
        way: Way = "openpi" if is_openpi and _MLP.fullmatch(leaf) else "qwix"
        if not is_named:
            leaf, way = _bare(leaf, base)
        pairs.append(Pair(leaf, way, np.asarray(factors["a"]), np.asarray(factors["b"])))
    return pairs


def _bare(module: str, base: Collection[str]) -> tuple[str, Way]:
    """The module that factors without a leaf's name are for, and whose they are."""
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


def _check(found: dict[tuple[str, bool], dict[str, Any]], where: str) -> None:
    """Raises an error for factors that are alone, or not of finite floats."""
    if alone := [
        f"{leaf}: lora_{x} alone" for (leaf, _), p in found.items() for x in p if len(p) < 2
    ]:
        raise CheckpointError(f"{where}: factors without the other one:{listing(alone)}")
    for (leaf, is_named), pair in found.items():
        for x, value in pair.items():
            array, name = np.asarray(value), f"{leaf}{'_' if is_named else '.'}lora_{x}"
            if array.dtype not in FLOATS:
                raise CheckpointError(f"{where}: {name} is of {array.dtype}, expected floats")
            if not np.isfinite(array.astype(np.float64)).all():
                said = f"{where}: {name} has numbers that are NaN or infinite"
                raise AdapterError(f"{said}. Take an earlier checkpoint.")


def _dotted(path: str) -> str:
    """A path with dots, whatever it had."""
    return path.replace("/", ".")
