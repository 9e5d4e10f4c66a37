"""A params tree, flattened: its leaves by their dotted names."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from jaxmix.placement.names import leaf_names
from jaxmix.placement.orientation import OutAxes
from jaxmix.placement.params import check_tree
from jaxmix.placement.place import Place
from jaxmix.placement.quantized import is_quantized
from jaxmix.placement.spelling import Spellings
from jaxmix.placement.ties import Ties

__all__ = ["Tree"]


@dataclass(frozen=True)
class Tree:
    """A flattened params tree.

    Args:
        leaves: Its leaves, in JAX's order.
        treedef: Its structure.
        positions: ``{dotted name: position of the leaf in `leaves`}``.
        repeated: The names that several leaves have.
        root: The tree itself, for the classes of its modules.
    """

    leaves: list[Any]
    treedef: Any
    positions: dict[str, int]
    repeated: frozenset[str]
    root: Any = None

    @classmethod
    def of(cls, params: Any) -> "Tree":
        """Flattens a tree.

        Args:
            params: Any pytree of weights.

        Raises:
            LayoutError: If it is a path or None instead of a tree of weights.
        """
        check_tree(params)
        paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)
        names = leaf_names([path for path, _ in paths])
        repeated = frozenset(name for name, count in Counter(names).items() if count > 1)
        positions = {name: i for i, name in enumerate(names)}
        return cls([leaf for _, leaf in paths], treedef, positions, repeated, params)

    def leaf(self, place: Place) -> Any:
        """Returns the leaf of a place."""
        return self.leaves[self.positions[place.leaf]]

    def with_leaves(self, leaves: list[Any]) -> Any:
        """Returns a tree of the same structure with other leaves."""
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    @cached_property
    def ties(self) -> Ties:
        """What the leaves' names show about tied embeddings."""
        return Ties.of(self.positions)

    @cached_property
    def spellings(self) -> Spellings:
        """The leaves' names without what wrappers add."""
        return Spellings(self.positions)

    @cached_property
    def out_axes(self) -> OutAxes:
        """Finds which axis of a linear layer's weight is its output."""
        shapes = {name: getattr(self.leaves[i], "shape", ()) for name, i in self.positions.items()}
        return OutAxes(shapes)
