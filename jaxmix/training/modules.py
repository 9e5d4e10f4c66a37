"""The modules of a params tree, classified by names, shapes and, where known, classes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.apply.plan import arithmetic
from jaxmix.placement.layout import KERNEL, Layout, Place
from jaxmix.placement.quantized import dequantized
from jaxmix.placement.roles import EMBEDDING, Role
from jaxmix.placement.ties import HEADS
from jaxmix.placement.tree import Tree

__all__ = ["Layer", "Target", "is_head", "modules_of", "target"]

Layer = Literal["linear", "conv1d", "convolution", "embedding", "norm", "parameter", "unclear"]

_WEIGHTS = ("weight", "kernel", "embedding", "scale")


@dataclass(frozen=True)
class Target:
    """A module that may get an adapter.

    Args:
        site: The module's PyTorch name.
        layer: The type of the module. "conv1d" is GPT-2's linear layer, whose weight PyTorch stores
            as (in, out). "unclear" means that the order of the weight's axes is unknown.
        shape: The weight's shape: (out, in), (out, in, *k), or (V, D) for an embedding; for a
            conv1d also (out, in).
        dtype: The dtype of new arrays: the base's, but at least float32.
        leaf: The tree's leaf.
        place: The place of the weight in the leaf.
        bias: The leaf and the place of the bias; None if there is no bias.
    """

    site: str
    layer: Layer
    shape: tuple[int, ...]
    dtype: Any
    leaf: Any = field(repr=False)
    place: Place = field(repr=False)
    bias: tuple[Any, Place] | None = field(default=None, repr=False)

    @property
    def outputs(self) -> int:
        """The first axis of the weight."""
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """The size of all other axes of the weight together."""
        return math.prod(self.shape[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """A convolution's spatial axes."""
        return self.shape[2:]

    @property
    def is_transposed(self) -> bool:
        """Whether PyTorch stores the weight as (in, out)."""
        return self.layer == "conv1d"

    @property
    def stored(self) -> jax.Array:
        """The weight as PyTorch stores it."""
        return self.place.get(jnp.asarray(dequantized(self.leaf)).astype(self.dtype))

    @cached_property
    def tensor(self) -> jax.Array:
        """The weight with the shape `shape`."""
        return self.stored.T if self.is_transposed else self.stored

    @property
    def matrix(self) -> jax.Array:
        """The weight as a matrix (out, in)."""
        return self.tensor.reshape(self.outputs, -1)

    @property
    def bias_vector(self) -> jax.Array:
        """The bias (out,)."""
        assert self.bias is not None
        leaf, place = self.bias
        return place.get(jnp.asarray(leaf).astype(self.dtype)).reshape(-1)


def modules_of(tree: Tree) -> list[str]:
    """Returns the names of all modules of a tree, including parents, according to its leaves.

    Args:
        tree: The tree, with PyTorch's or Flax's names.

    Returns:
        The names without repetition, in the order of the tree's leaves. A leaf that is not the
        weight or bias of a module is listed under its own name.

    Example:
        >>> modules_of(Tree.of({"layers": [{"q": {"kernel": 1.0, "bias": 1.0}}]}))
        ['layers', 'layers.0', 'layers.0.q']
    """
    found: dict[str, None] = {}
    for name in tree.positions:
        name = name.removeprefix("params.")
        module, _, last = name.rpartition(".")
        parts = (module if last in (*_WEIGHTS, "bias") else name).split(".")
        for end in range(1, len(parts) + 1):
            found[".".join(parts[:end])] = None
    found.pop("", None)
    return list(found)


def is_head(site: str) -> bool:
    """Whether a module is the output head of a language model, according to its name.

    Args:
        site: The module's name.

    Returns:
        Whether it ends in the usual name of a head and is not in a numbered layer.

    Example:
        >>> is_head("lm_head"), is_head("model.layers.0.output")
        (True, False)
    """
    is_inner = any(part.isdigit() for part in site.split("."))
    return not is_inner and any(site == head or site.endswith(f".{head}") for head in HEADS)


def target(
    tree: Tree, table: Layout, site: str, roles: Mapping[str, Role] | None = None
) -> Target | None:
    """Returns the module with a name, or None if the tree has no weight for it.

    Args:
        tree: The params.
        table: The layout of the tree.
        site: The module's name.
        roles: The roles of the tree's weights, by the names of their leaves.

    Returns:
        The module; its `Target.layer` shows whether it can be adapted.
    """
    place = next(_existing_places(tree, table, site, "weight"), None)
    if place is None:
        return None
    leaf = tree.leaf(place)
    if not hasattr(leaf, "shape") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    # In EasyDeL norms have a kernel, without the axes that a linear layer's rule moves.
    shape = tuple(leaf.shape)
    shape = place.shape(shape) if len(shape) > 1 or place.axes is None else shape
    role = (roles or {}).get(place.leaf) if table.by_name else None
    layer, shape = _layer(tree, table, site, place, shape, role)
    bias = next(_existing_places(tree, table, site, "bias"), None)
    bias_leaf = None if bias is None else (tree.leaf(bias), bias)
    return Target(site, layer, shape, arithmetic(_float(leaf.dtype)), leaf, place, bias_leaf)


def _float(dtype: Any) -> Any:
    """Returns the dtype that JAX uses for this one."""
    return jax.dtypes.canonicalize_dtype(np.dtype(dtype))


def _existing_places(tree: Tree, table: Layout, site: str, part: Any) -> Iterator[Place]:
    """Yields the places of a site's leaf that exist in the tree."""
    for place in table.places(site, part):
        if place.leaf in tree.positions and place.leaf not in tree.repeated:
            yield place


def _layer(
    tree: Tree,
    table: Layout,
    site: str,
    place: Place,
    shape: tuple[int, ...],
    role: Role | None,
) -> tuple[Layer, tuple[int, ...]]:
    """Returns a module's type, and its weight's shape as (out, in, …)."""
    last = place.leaf.rpartition(".")[2]
    if table.by_name and place.leaf.removeprefix("params.") == site:
        return "parameter", shape
    kind = None if role is None else role.kind
    if kind == "norm" or len(shape) < 2:
        return "norm", shape
    is_embedding = last == "embedding" or EMBEDDING.fullmatch(site.rpartition(".")[2])
    if len(shape) == 2 and (kind == "embedding" or (kind is None and is_embedding)):
        return "embedding", shape
    if len(shape) > 2:
        return ("convolution" if kind in (None, "convolution", "other") else "unclear"), shape
    axis = tree.out_axes.of(place.leaf) if place.index is None else None
    stated = table.is_conv1d(site)
    if place.axes is None and (axis == 1 if stated is None else stated):
        return "conv1d", shape[::-1]
    if place.axes == KERNEL and axis == 0:
        # A Flax port of GPT-2 stores the kernel as (out, in), which its rule transposes.
        return "conv1d", shape[::-1]
    return "linear", shape
