"""Members' operators by kind: those of one structure lie in one stack, whoever they are of.

A stack has a slot for each member that has such an operator, and free ones; whose a slot is is an
array too. So a member that is exchanged, or put into free slots, is other numbers in the same
program. Ranks and counts are padded with zeros to the next power of two, so that operators of
nearly one size are of one kind.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxmix.bank.chosen import Chosen
from jaxmix.operators import (
    Diagonal,
    Hadamard,
    Identity,
    LowRank,
    Operator,
    Permutation,
    Product,
    Sparse,
    Sum,
    Zero,
)

__all__ = ["Kind", "chosen", "factors_of", "freed", "kinds_of", "put", "slot_of", "terms_of"]

# Up to this rank a Hadamard is made a LowRank, by Khatri-Rao, and then is of that kind. In a loop
# over rows, where a row's factors are in the cache, both took the same time at 16, and this is one
# loop for both; beyond, its factors are many times smaller.
_KHATRI_RAO = 36


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Kind:
    """Operators of one structure, or arrays of one shape, one in each slot.

    Args:
        stack: A pytree whose arrays have an axis of slots: the first one, or the second one of what
            has layers.
        owner: whose each slot is, a member's number; -1 for a free one.
        axis: Which axis is the slots'.
    """

    stack: Any
    owner: Int[Array, " slots"]
    axis: int = field(metadata={"static": True})

    @property
    def key(self) -> Hashable:
        """What an operator must have to lie in it."""
        leaves, structure = jax.tree.flatten(self.stack)
        shapes = ((*x.shape[: self.axis], *x.shape[self.axis + 1 :]) for x in leaves)
        return structure, tuple(zip(shapes, (str(x.dtype) for x in leaves), strict=True))


def terms_of(delta: Operator) -> list[Operator]:
    """The terms of a Δ, each padded to its kind's size."""
    terms = delta.terms if isinstance(delta, Sum) else (delta,)
    # What has no numbers of its own gets some.
    terms = (t.scaled(1.0) if isinstance(t, Identity | Permutation) else t for t in terms)
    return [_padded(term) for term in terms if not isinstance(term, Zero)]


def factors_of(side: Operator) -> list[Operator]:
    """An L or R as the one factor that it is, padded likewise; none if it is the identity."""
    return [] if isinstance(side, Identity) else [_padded(side)]


def kinds_of(
    members: Mapping[int, Sequence[Any]], room: Callable[[int], int], axis: int = 0
) -> tuple[Kind, ...]:
    """The kinds of what members have, each member of a kind in a slot.

    Args:
        members: By number, a member's operators, or arrays.
        room: How many slots so many members of a kind get.
        axis: Which axis of the stacks is to be the slots'.

    Returns:
        A kind for each structure; two, where a member has two operators of it.
    """
    found: dict[Hashable, dict[int, Any]] = {}
    for number, things in members.items():
        seen: dict[Hashable, int] = {}
        for thing in things:
            key = _key(thing)
            seen[key] = seen.get(key, 0) + 1
            found.setdefault((key, seen[key]), {})[number] = thing
    return tuple(_kind(things, room(len(things)), axis) for things in found.values())


def _kind(things: Mapping[int, Any], slots: int, axis: int) -> Kind:
    def stacked(*leaves: Array) -> Array:
        free = [jnp.zeros_like(leaves[0])] * (slots - len(leaves))
        return jnp.stack([*leaves, *free], axis)

    owner = np.full(slots, -1, np.int32)
    owner[: len(things)] = list(things)
    return Kind(jax.tree.map(stacked, *things.values()), jnp.asarray(owner), axis)


def put(kinds: Sequence[Kind], number: int, things: Sequence[Any]) -> tuple[Kind, ...] | None:
    """The kinds with a member's operators in free slots; None where there is none for one."""
    now = list(kinds)
    left = list(range(len(now)))
    for thing in things:
        key = _key(thing)
        at = next((i for i in left if now[i].key == key and (now[i].owner < 0).any()), None)
        if at is None:
            return None
        left.remove(at)
        kind = now[at]
        slot = int(jnp.argmax(kind.owner < 0))
        index = (slice(None),) * kind.axis + (slot,)
        stack = jax.tree.map(lambda old, new, i=index: old.at[i].set(new), kind.stack, thing)
        now[at] = Kind(stack, kind.owner.at[slot].set(number), kind.axis)
    return tuple(now)


def freed(kinds: Sequence[Kind], number: int) -> tuple[Kind, ...]:
    """The kinds with a member's slots free."""
    return tuple(
        Kind(kind.stack, jnp.where(kind.owner == number, -1, kind.owner), kind.axis)
        for kind in kinds
    )


def slot_of(kind: Kind, pick: Array) -> Array:
    """A row's slot in a kind, by its member's number, -1 for none; or a strength for each slot."""
    if jnp.issubdtype(pick.dtype, jnp.floating):
        own = pick.at[jnp.maximum(kind.owner, 0)].get(mode="fill", fill_value=np.nan)
        return jnp.where(kind.owner >= 0, own, 0)
    mine = (kind.owner == pick) & (pick >= 0)
    return jnp.where(mine.any(), jnp.argmax(mine), -1).astype(np.int32)


def chosen(
    kinds: Sequence[Kind], pick: Array, shape: tuple[int, int], is_factor: bool, each: int
) -> Operator:
    """What a row has of the kinds on one side of its map.

    Args:
        kinds: The kinds of L, of R or of Δ.
        pick: The row's member, or a strength for each member.
        shape: The operators' shape.
        is_factor: Whether it is an L or R.
        each: How many rows of a batch a slot takes on average, where all are taken.

    Returns:
        An operator; of a leaf with layers, a stack of them.
    """
    if not kinds:
        return Identity(shape[0]) if is_factor else Zero(*shape)
    slots = [slot_of(kind, pick) for kind in kinds]
    if is_factor and all(isinstance(kind.stack, Diagonal) for kind in kinds):
        # A vector a row is small, and is read as it is multiplied with: no loop, no product.
        return Diagonal(_vector(kinds, slots))
    if kinds[0].axis:
        layers = jax.tree.leaves(kinds[0].stack)[0].shape[0]
        slots = [jnp.broadcast_to(slot[None], (layers, *slot.shape)) for slot in slots]
    stacks = tuple(kind.stack for kind in kinds)
    return Chosen(stacks, tuple(slots), *shape, is_factor, each=each)


def _vector(kinds: Sequence[Kind], slots: Sequence[Array]) -> Array:
    """The diagonal that a row chose, or ones."""
    now = jnp.ones_like(jax.lax.index_in_dim(kinds[0].stack.d, 0, kinds[0].axis, keepdims=False))
    for kind, slot in zip(kinds, slots, strict=True):
        own = jnp.take(kind.stack.d, jnp.maximum(slot, 0), axis=kind.axis, mode="clip")
        now = jnp.where(slot >= 0, own, now)
    return now


# ---------------------------------------------------------------- one operator


def _key(thing: Any) -> Hashable:
    """What things must have in common to lie in one stack."""
    leaves, structure = jax.tree.flatten(thing)
    return structure, tuple((tuple(x.shape), str(x.dtype)) for x in leaves)


def _padded(x: Any) -> Any:
    """An operator with its ranks and counts padded; it may have a further first axis of layers."""
    match x:
        case LowRank():
            return LowRank(_up(x.b, -1), _up(x.a, -2))
        case Hadamard():
            if x.left.a.shape[-2] * x.right.a.shape[-2] > _KHATRI_RAO:
                return Hadamard(_padded(x.left), _padded(x.right))
            made = Hadamard.low_rank if x.left.a.ndim == 2 else jax.vmap(Hadamard.low_rank)
            return _padded(made(x))
        case Sparse():
            return Sparse(_up(x.values, -1), _up(x.indices, -1), x.n_rows, x.n_cols)
        case Sum():
            return Sum(tuple(map(_padded, x.terms)))
        case Product():
            return Product(_padded(x.first), _padded(x.second))
        case _:
            return x


def _up(x: Array, axis: int) -> Array:
    """Zeros at the end of an axis, up to the next power of two."""
    size = x.shape[axis]
    wanted = 1 << max(size - 1, 0).bit_length()
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, wanted - size)
    return jnp.pad(x, widths)
