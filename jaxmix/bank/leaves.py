"""What the members of a bank do to one leaf, made once; and the leaf as one row sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.affine import AffineMap
from jaxmix.bank.kinds import Kind, chosen, factors_of, freed, kinds_of, put, slot_of, terms_of
from jaxmix.placement.form import Form
from jaxmix.placement.quantized import dequantized
from jaxmix.unmerged.leaf import Factored, Tags

__all__ = ["Kept", "kept"]

# The sides of a map, and whether one without is the identity there.
_SIDES = {"left": True, "right": True, "shift": False}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Kept:
    """What the members do to one leaf: the kinds of their L, R and Δ, or whole leaves.

    Args:
        kinds: the kinds of each side; or, by "whole", of leaves with a member's updates in them.
        name: the leaf's dotted name.
        leaf_shape: the leaf's shape.
        forms: how it holds its sites' tensors, as a factored leaf says it.
        axes: the leaf's axes that are rows, columns and layers, counted from the end; None for a
            whole one.
        shape: (out, in) of the maps; () for a whole one.
        is_linear: whether all members add to the weight, and strengths scale what they add.
        why: why the leaves are whole; "" where they are not.
    """

    kinds: Mapping[str, tuple[Kind, ...]]
    name: str = field(metadata={"static": True})
    leaf_shape: tuple[int, ...] = field(metadata={"static": True})
    forms: tuple[Form, ...] = field(metadata={"static": True})
    axes: Any = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    is_linear: bool = field(metadata={"static": True})
    why: str = field(metadata={"static": True})

    def of_row(self, base: Any, pick: Array, each: int) -> Any:
        """The leaf that one row sees.

        Args:
            base: the leaf itself.
            pick: the row's member, -1 for none; or, of a linear leaf, a strength for each member.
            each: how many rows of a batch a member has on average.

        Returns:
            A factored leaf, or an array where it is kept whole.
        """
        if self.why:
            now = jnp.asarray(dequantized(base))
            for kind in self.kinds["whole"]:
                slot = slot_of(kind, pick)
                own = jnp.take(kind.stack, jnp.maximum(slot, 0), axis=0, mode="clip")
                now = jnp.where(slot >= 0, own.astype(now.dtype), now)
            return now
        out, into = self.shape
        shapes = {"left": (out, out), "right": (into, into), "shift": (out, into)}
        sides = {
            side: chosen(self.kinds[side], pick, shapes[side], is_factor, each)
            for side, is_factor in _SIDES.items()
        }
        names = tuple("" for _ in self.forms)
        tags = Tags(names, tuple(() for _ in names), tuple(False for _ in names), ())
        return Factored(base, (), None, (), AffineMap(**sides), self.forms, None, tags)

    def described(self) -> str:
        """How it is run, for people."""
        if self.why:
            count = sum(kind.owner.shape[0] for kind in self.kinds["whole"])
            return f"{self.name}: whole, {count} slots ({self.why})"
        shown = [
            f"{symbol} {type(kind.stack).__name__} of {kind.owner.shape[0]} slots"
            for side, symbol in (("left", "L"), ("right", "R"), ("shift", "Δ"))
            for kind in self.kinds[side]
        ]
        return f"{self.name}: {', '.join(shown) or 'nothing'}"

    def freed(self, number: int) -> "Kept":
        """Without a member."""
        return replace(self, kinds={side: freed(own, number) for side, own in self.kinds.items()})

    def put(self, number: int, leaf: Factored) -> "Kept | None":
        """With another member's leaf in free slots; None where it does not fit."""
        things = _things(leaf, not self.why)
        if things is None or (not self.why and _axes(leaf) != self.axes):
            return None
        now = {side: put(self.kinds[side], number, things[side]) for side in things}
        is_linear = self.is_linear and _is_linear(leaf)
        if is_linear != self.is_linear or any(kinds is None for kinds in now.values()):
            return None
        return replace(self, kinds=now)


def kept(name: str, leaves: Mapping[int, Factored], room: Callable[[int], int]) -> Kept:
    """What members do to one leaf.

    Args:
        name: the leaf's dotted name.
        leaves: by number, each member's factored leaf, its map made.
        room: how many slots so many members of a kind get.

    Returns:
        The kinds of their operators; or whole leaves, where one of them has no map apart from them.
    """
    first = next(iter(leaves.values()))
    every = {number: _things(leaf, apart=True) for number, leaf in leaves.items()}
    axes = {_axes(leaf) for leaf in leaves.values()}
    why = next((why for leaf in leaves.values() if isinstance(why := _axes(leaf), str)), "")
    if not why and len(axes) > 1:
        why = "its members see its axes differently"
    if why:
        every = {number: _things(leaf, apart=False) for number, leaf in leaves.items()}
        sides, shape, axis = ("whole",), (), 0
    else:
        assert first.made is not None
        axis = int(first.forms[0].index is not None)
        sides, shape = tuple(_SIDES), _shape(first)
    kinds = {
        side: kinds_of({n: things[side] for n, things in every.items() if things}, room, axis)
        for side in sides
    }
    is_linear = not why and all(map(_is_linear, leaves.values()))
    seen = None if why else axes.pop()
    return Kept(kinds, name, first.shape, first.forms, seen, shape, is_linear, why)


def _things(leaf: Factored, apart: bool) -> dict[str, list[Any]] | None:
    """A member's operators on each side; or the whole leaf, with the member's updates in it."""
    if not apart:
        return {"whole": [leaf.dense()]}
    if leaf.made is None:
        return None
    made = leaf.made
    return {
        "left": factors_of(made.left),
        "right": factors_of(made.right),
        "shift": terms_of(made.shift),
    }


def _axes(leaf: Factored) -> Any:
    """The leaf's axes that are rows, columns and layers; or why it has no map apart from it."""
    weight = leaf.apart(whole=True)
    return weight if isinstance(weight, str) else (weight.out, weight.into, weight.stack)


def _shape(leaf: Factored) -> tuple[int, int]:
    """(out, in) of the leaf's maps."""
    weight = leaf.apart(whole=True)
    assert not isinstance(weight, str)
    return weight.matrix_shape


def _is_linear(leaf: Factored) -> bool:
    """Whether a member adds to the leaf, in proportion to its strength, and does no more."""
    is_base_side = any(update.is_base_side for word in leaf.words for _, update in word)
    return leaf.made is not None and leaf.made.is_shift and not is_base_side
