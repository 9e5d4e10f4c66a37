"""Roles: the kind of each weight of a tree, by its module's class, its siblings and its shape.

JAX trees may have linear layers with more than two axes: stacked along layers, with separate axes
for heads, or both. `Roles` distinguishes these from convolutions, norms and embeddings, and reports
the weights that it can't classify.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.placement.classes import Kind, Known, axes_by_class, owners
from jaxmix.placement.quantized import is_quantized
from jaxmix.placement.stacks import Stack, stacks
from jaxmix.placement.tree import Tree

__all__ = ["EMBEDDING", "Role", "Roles", "depth"]

_WEIGHTS = ("weight", "kernel", "embedding", "embeddings", "scale", "w")
# Module names of embeddings, for leaves whose own name does not show it.
EMBEDDING = re.compile(
    r"(.*_)?(embed(ding)?s?|emb)(_(audio_)?tokens?|_positions?|_in|_table)?|w[tp]e|shared"
    r"|relative_attention_bias"
)
_NORM = re.compile(
    r"(.*_)?(layer_?norm|rms_?norm|batch_?norm|group_?norm|norm|ln)(_?[\da-z]+)?", re.I
)
_ADAPTER = re.compile(r"(.*_)?lora_(a|b|A|B|embedding_A|embedding_B|magnitude_vector)")
_QUERIES = ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v")
_OUTS = ("out", "attention_output", "o_proj", "out_proj", "o")
# The gates of Flax's recurrent cells.
_GATES = ({"ii", "ig", "hi", "hg"}, {"ir", "iz", "hr", "hz"}, {"dense_i", "dense_h"})
_LINEAR = re.compile(r"(.*_)?(einsum|linear|dense|kernel|proj|projection)")
_CONV = re.compile(r"(.*[._])?(conv|patch|stem|down_?sample)[^.]*.*", re.IGNORECASE)
_WRAPPER = "base_module"


@dataclass(frozen=True)
class Role:
    """The kind and the axes of one weight.

    Args:
        site: The module's name, without the number of the layer if layers are stacked.
        leaf: The leaf's name.
        kind: The kind of the module; "unclear" if it can't be determined.
        shape: The leaf's shape.
        stack: The axes of stacked layers.
        rows: The axes of a linear layer's outputs.
        cols: The axes of its inputs.
    """

    site: str
    leaf: str
    kind: Kind
    shape: tuple[int, ...]
    stack: tuple[Stack, ...] = ()
    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the names are sufficient: no stack, no heads, a usual name."""
        module, _, last = self.leaf.removeprefix("params.").rpartition(".")
        is_usual = module == self.site and last in ("weight", "kernel", "embedding", "scale")
        return not self.stack and is_usual and len(self.rows) < 2 and len(self.cols) < 2

    @cached_property
    def sites(self) -> dict[str, str]:
        """Returns the sites in the leaf, each with its name without the numbers of layers."""
        found: dict[str, str] = {}
        for numbers in product(*(range(stack.size) for stack in self.stack)):
            parts = self.site.split(".") if self.site else []
            # From the innermost, which leaves the positions of the outer ones unchanged.
            for stack, number in sorted(
                zip(self.stack, numbers, strict=True), key=lambda x: -depth(x[0].root)
            ):
                parts.insert(depth(stack.root), str(number))
            found[".".join(parts)] = self.site
        return found

    @property
    def is_matrix(self) -> bool:
        """Whether this is a linear layer with known axes."""
        return bool(self.rows and self.cols)


class Roles:
    """The roles of a tree's weights.

    Args:
        tree: The tree.

    Example:
        >>> up = {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}
        >>> role = Roles(Tree.of({"layers": {"up": up}})).by_leaf["layers.up.kernel"]
        >>> role.kind, role.stack[0].size, role.rows, role.cols
        ('linear', 3, (2,), (1,))
    """

    def __init__(self, tree: Tree):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._known: dict[str, Known] = {}
        for name, path, leaf in _floats(tree):
            self.shapes[name] = tuple(leaf.shape)
            known = axes_by_class(
                owners(tree.root, path), name.rpartition(".")[2], self.shapes[name]
            )
            if known is not None:
                self._known[name] = known
        known_stacks = {n: k.stack for n, k in self._known.items() if k.rows and k.cols}
        self.stacks = stacks(self.shapes, known_stacks)

    @cached_property
    def by_leaf(self) -> dict[str, Role]:
        """The role of each weight, by its leaf's name."""
        return {name: self._role(name) for name in self.shapes if not _is_bias(name)}

    @cached_property
    def _children(self) -> dict[str, set[str]]:
        """The names below each module, up to the highest one that is looked up."""
        found: dict[str, set[str]] = {}
        for name in self.shapes:
            above = name
            for _ in range(8):
                above, _, last = above.rpartition(".")
                found.setdefault(above, set()).add(last)
        return found

    @cached_property
    def _is_torch(self) -> bool:
        return any(name.endswith(".weight") for name in self.shapes)

    def _role(self, leaf: str) -> Role:
        """The role of one leaf."""
        shape, stack = self.shapes[leaf], self.stacks.get(leaf, ())
        known = self._known.get(leaf)
        module, _, last = leaf.rpartition(".")
        module, is_weight = (module, True) if last in _WEIGHTS and module else (leaf, False)
        site = _site(module)
        if known is not None:
            if not stack and known.stack:  # a stack of only this module
                stack = tuple(Stack(module, axis, shape[axis]) for axis in known.stack)
            return Role(site, leaf, known.kind, shape, stack, known.rows, known.cols)
        kept = [axis for axis in range(len(shape)) if axis not in [layers.axis for layers in stack]]
        kind, cols = self._by_name(leaf, module, is_weight, kept, stack)
        if kind not in ("linear", "recurrent"):
            return Role(site, leaf, kind, shape, stack)
        ins, outs = tuple(kept[:cols]), tuple(kept[cols:])
        if last == "weight":
            ins, outs = outs, ins
        return Role(site, leaf, kind, shape, stack, outs, ins)

    def _by_name(
        self,
        leaf: str,
        module: str,
        is_weight: bool,
        kept: list[int],
        stack: tuple[Stack, ...],
    ) -> tuple[Kind, int]:
        """The kind of a module without a class, and the number of leading axes on one side."""
        last, name = leaf.rpartition(".")[2], module.rpartition(".")[2]
        if any(_ADAPTER.fullmatch(part) for part in leaf.split(".")):
            return "other", 0
        if last.startswith("embedding") or EMBEDDING.fullmatch(name):
            return "embedding", 0
        if last == "scale" or (is_weight and len(kept) < 2) or _NORM.fullmatch(name):
            return "norm", 0
        if not is_weight:
            is_like = len(kept) > 1 and _LINEAR.fullmatch(last) and not self._is_torch
            return ("unclear" if is_like else "other"), 0
        if len(kept) == 2:
            siblings = self._children.get(module.rpartition(".")[0], set())
            is_cell = any(gates <= siblings and name[:1] in "hid" for gates in _GATES)
            return ("recurrent" if is_cell else "linear"), 1
        if last == "weight":
            return "convolution", 0
        return self._of_more_axes(leaf, module, name, kept)

    def _of_more_axes(self, leaf: str, module: str, name: str, kept: list[int]) -> tuple[Kind, int]:
        """The kind of a Flax kernel with three or more axes: one with heads, or a convolution."""
        above = module.rpartition(".")[0]
        siblings = self._children.get(above, set())
        bias = self._bias_shape(module)
        shape = tuple(self.shapes[leaf][axis] for axis in kept)
        for names in _QUERIES:
            if len(kept) == 3 and set(names) <= siblings:
                if name in names:
                    return "linear", 1
                if name in _OUTS:
                    return "linear", 2
        if bias is not None and 1 < len(bias) < len(shape) and shape[-len(bias) :] == bias:
            return "linear", len(shape) - len(bias)
        if bias is not None and len(bias) == 1:
            return "convolution", 0
        is_square = len(shape) > 3 and len(set(shape[:-2])) == 1
        return ("convolution" if is_square or _CONV.fullmatch(module) else "unclear"), 0

    def _bias_shape(self, module: str) -> tuple[int, ...] | None:
        """The shape of a module's bias without the axes of stacked layers."""
        for name in (f"{module}.bias", f"{module}.b"):
            if name in self.shapes:
                taken = [layers.axis for layers in self.stacks.get(name, ())]
                shape = self.shapes[name]
                return tuple(size for axis, size in enumerate(shape) if axis not in taken)
        return None


def depth(root: str) -> int:
    """The number of parts of a site's name up to the root of a stack."""
    name = _site(root)
    return len(name.split(".")) if name else 0


def _floats(tree: Tree) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """The leaves of floats, with names and paths."""
    if tree.root is None:
        return
    paths = jax.tree_util.tree_flatten_with_path(tree.root, is_leaf=is_quantized)[0]
    for name, at in tree.positions.items():
        leaf = tree.leaves[at]
        if hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating):
            yield name, paths[at][0], leaf


def _site(module: str) -> str:
    """The name of a module without its wrappers."""
    return ".".join(p for p in module.removeprefix("params.").split(".") if p != _WRAPPER)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] in ("bias", "b")
