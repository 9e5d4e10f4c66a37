"""Affine maps of a weight, ``W ↦ L W Rᵀ + Δ``, and their composition.

Every update of every family is such a map, of a weight (out, in) and, with matrices (out, 1), of a
bias. They form a monoid: ``(L₂, R₂, Δ₂) ∘ (L₁, R₁, Δ₁) = (L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``. `compose`
is that product; `fold` is the same product written the way Horner would, so that no structured Δ is
made dense by a rotation that comes after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Float

from jaxmix.operators import (
    Identity,
    LowRank,
    Operator,
    Product,
    Sum,
    Zero,
    add,
    multiply,
)

__all__ = ["AffineMap", "Base", "compose", "fold", "identity", "shift"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AffineMap:
    """The map ``W ↦ L W Rᵀ + Δ`` of a matrix (out, in)."""

    left: Operator
    right: Operator
    shift: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the matrices that it maps."""
        return self.shift.shape

    @property
    def is_shift(self) -> bool:
        """Whether L and R are the identity."""
        return isinstance(self.left, Identity) and isinstance(self.right, Identity)

    @property
    def T(self) -> "AffineMap":
        """The same map of the transposed matrix: ``Wᵀ ↦ R Wᵀ Lᵀ + Δᵀ``."""
        return AffineMap(self.right, self.left, self.shift.T)

    def __call__(self, w: Float[Array, "out in"]) -> Float[Array, "out in"]:
        """``L W Rᵀ + Δ``."""
        w = self.left @ w
        w = (self.right @ w.T).T if not isinstance(self.right, Identity) else w
        return w if isinstance(self.shift, Zero) else w + self.shift.dense()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base:
    """The base's weight at a site, which an update may ask about.

    ``matrix`` is the pristine weight as (out, in), for families with ``reads_base``; others get
    None. ``shape`` is always there.
    """

    matrix: Float[Array, "out in"] | None
    shape: tuple[int, int] = field(metadata={"static": True})


def identity(shape: tuple[int, int]) -> AffineMap:
    """The map that changes nothing.

    Args:
        shape: (out, in) of the matrices.

    Returns:
        ``(I, I, 0)``.
    """
    out_size, in_size = shape
    return AffineMap(Identity(out_size), Identity(in_size), Zero(out_size, in_size))


def shift(delta: Operator) -> AffineMap:
    """The map ``W ↦ W + Δ``.

    Args:
        delta: Δ (out, in).

    Returns:
        ``(I, I, Δ)``.
    """
    return AffineMap(Identity(delta.shape[0]), Identity(delta.shape[1]), delta)


def compose(later: AffineMap, earlier: AffineMap) -> AffineMap:
    """``later ∘ earlier`` as one map: ``(L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``.

    Args:
        later: the map applied second.
        earlier: the map applied first, of matrices of the same shape.

    Returns:
        One map. Its Δ holds a `Product` where a structure does not survive L₂ or R₂.
    """
    return AffineMap(
        multiply(later.left, earlier.left),
        multiply(later.right, earlier.right),
        add(_carried(later, earlier.shift), later.shift),
    )


def fold(word: Sequence[AffineMap]) -> tuple[AffineMap, ...]:
    """The composition of many maps in as few steps as their structures allow.

    Low-rank terms are carried through every L and R that comes later and end in one product; other
    terms stay where they are, and a step is closed only when an L or R follows that would take
    their structure away. So adapters of one kind cost the same wherever they stand in the word.

    Args:
        word: the maps, the first one first.

    Returns:
        The steps, the first one first; their composition is the word's. Empty if nothing is left.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.operators import Diagonal, Dense
        >>> double = AffineMap(Diagonal(2 * jnp.ones(1)), Identity(1), Zero(1, 1))
        >>> steps = fold([shift(Dense(jnp.ones((1, 1)))), double, double])
        >>> len(steps), float(steps[0](jnp.ones((1, 1)))[0, 0])
        (1, 8.0)
    """
    steps: list[AffineMap] = []
    carried: Operator = Zero(*word[0].shape) if word else Zero(0, 0)
    for new in word:
        low, heavy = _split(new.shift)
        carried = add(_carried(new, carried), low)
        step = AffineMap(new.left, new.right, heavy)
        if steps and _is_thrifty(joined := compose(step, steps[-1])):
            steps[-1] = joined
        else:
            steps.append(step)
    if steps:
        last = steps[-1]
        steps[-1] = AffineMap(last.left, last.right, add(last.shift, carried))
    return tuple(s for s in steps if not (s.is_shift and isinstance(s.shift, Zero)))


def _carried(by: AffineMap, delta: Operator) -> Operator:
    """``L Δ Rᵀ``, term by term."""
    if by.is_shift or isinstance(delta, Zero):
        return delta
    carried: Operator = Zero(*delta.shape)
    for term in delta.terms if isinstance(delta, Sum) else (delta,):
        carried = add(carried, multiply(multiply(by.left, term), by.right.T))
    return carried


def _split(delta: Operator) -> tuple[Operator, Operator]:
    """The low-rank part of Δ, and the rest."""
    low: Operator = Zero(*delta.shape)
    rest: Operator = Zero(*delta.shape)
    for term in delta.terms if isinstance(delta, Sum) else (delta,):
        if isinstance(term, LowRank):
            low = add(low, term)
        else:
            rest = add(rest, term)
    return low, rest


def _is_thrifty(step: AffineMap) -> bool:
    """Whether composing left every term of Δ with a structure of its own."""
    terms = step.shift.terms if isinstance(step.shift, Sum) else (step.shift,)
    return not any(isinstance(term, Product) for term in terms)
