"""Affine maps of a weight, ``W ↦ L W Rᵀ + Δ``, and their composition.

Every update of every family is such a map, of a weight (out, in) and, with matrices (out, 1), of a
bias. They form a monoid: ``(L₂, R₂, Δ₂) ∘ (L₁, R₁, Δ₁) = (L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``. `compose`
is that product; `fold` is the same product in steps, so that no structured Δ is made dense by a
rotation that comes after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
from jaxtyping import Array, Float

from jaxmix.operators import (
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    LowRank,
    Operator,
    Sparse,
    Zero,
    add,
    multiply,
    terms,
)

__all__ = ["AffineMap", "Base", "compose", "fold", "identity", "shift"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map ``W ↦ L W Rᵀ + Δ`` of a matrix (out, in).

    Args:
        left: L (out, out).
        right: R (in, in).
        shift: Δ (out, in).

    Example:
        >>> import jax.numpy as jnp
        >>> double = AffineMap(Diagonal(jnp.full((1,), 2.0)), Identity(3), Zero(1, 3))
        >>> double(jnp.ones((1, 3))).tolist()
        [[2.0, 2.0, 2.0]]
    """

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
        w = w if isinstance(self.right, Identity) else (self.right @ w.T).T
        return self.shift.added_to(w)

    def flops(self) -> int:
        """Multiplications and additions that applying it to a dense W takes."""
        out_size, in_size = self.shape
        turning = self.left.matmul_flops(in_size) + self.right.matmul_flops(out_size)
        return turning + self.shift.added_flops()


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Base:
    """The base's leaves at a site, which an update may ask about.

    Args:
        matrix: the pristine weight as (out, in), for updates with ``reads_base``; None for others.
        shape: (out, in) of the weight, which is always there.
        bias: the pristine bias as (out, 1), for the bias maps of updates with ``reads_base``; None
            for others and for weight maps.

    Example:
        >>> import jax.numpy as jnp
        >>> Base(jnp.ones((2, 3)), (2, 3)).read("matrix").shape
        (2, 3)
    """

    matrix: Float[Array, "out in"] | None
    shape: tuple[int, int] = field(metadata={"static": True})
    bias: Float[Array, "out 1"] | None = None

    def read(self, leaf: Literal["matrix", "bias"]) -> Float[Array, "out n"]:
        """The leaf of this name, for a map that can't do without.

        Raises:
            ValueError: if nobody handed it; a fault of what runs the map, not of its user.
        """
        found = self.matrix if leaf == "matrix" else self.bias
        if found is None:
            raise ValueError(
                f"a map of a weight {self.shape} reads the base's {leaf}, found None. Hand "
                f"Base.{leaf} to updates whose reads_base is true."
            )
        return found


def identity(shape: tuple[int, int]) -> AffineMap:
    """The map that changes nothing.

    Args:
        shape: (out, in) of the matrices.

    Returns:
        ``(I, I, 0)``.
    """
    return shift(Zero(*shape))


def shift(delta: Operator) -> AffineMap:
    """The map ``W ↦ W + Δ``.

    Args:
        delta: Δ (out, in).

    Returns:
        ``(I, I, Δ)``.
    """
    out_size, in_size = delta.shape
    return AffineMap(Identity(out_size), Identity(in_size), delta)


def compose(later: AffineMap, earlier: AffineMap) -> AffineMap:
    """``later ∘ earlier`` as one map: ``(L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``.

    Args:
        later: the map applied second.
        earlier: the map applied first, of matrices of the same shape.

    Returns:
        One map. Its Δ holds a `Product` where a structure does not survive L₂ or R₂.

    Raises:
        ShapeError: if they map matrices of different shapes.
    """
    return AffineMap(
        multiply(later.left, earlier.left),
        multiply(later.right, earlier.right),
        add(_carried(later, earlier.shift), later.shift),
    )


def fold(word: Sequence[AffineMap]) -> tuple[AffineMap, ...]:
    """The composition of many maps in as few steps as their structures allow.

    Low-rank terms are carried through every L and R that comes later and end in one product at the
    end; other terms stay where they are, and a step is closed only when an L or R follows under
    which they would lose their structure. So terms of one kind cost the same wherever they stand in
    the word, and a rotation turns the weight with all that was added to it, once.

    Args:
        word: the maps, the first one first.

    Returns:
        The steps, the first one first; their composition is the word's. Empty if nothing is left.

    Raises:
        ShapeError: if the maps are of matrices of different shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> double = AffineMap(Diagonal(jnp.full((1,), 2.0)), Identity(1), Zero(1, 1))
        >>> steps = fold([shift(Dense(jnp.ones((1, 1)))), double, double])
        >>> len(steps), float(steps[0](jnp.ones((1, 1)))[0, 0])
        (1, 8.0)
    """
    if not word:
        return ()
    steps = [identity(word[0].shape)]
    carried: Operator = Zero(*word[0].shape)
    for new in word:
        low, heavy = _parted(new.shift, lambda term: isinstance(term, LowRank))
        carried = add(_carried(new, carried), low)
        step = AffineMap(new.left, new.right, heavy)
        if all(_survives(term, step) for term in terms(steps[-1].shift)):
            steps[-1] = compose(step, steps[-1])
        else:
            steps.append(step)
    steps[-1] = compose(shift(carried), steps[-1])
    return tuple(step for step in steps if not (step.is_shift and isinstance(step.shift, Zero)))


def _carried(by: AffineMap, delta: Operator) -> Operator:
    """``L Δ Rᵀ``: what keeps its structure term by term, the rest as one product."""
    if by.is_shift:
        return delta
    thrifty, rest = _parted(delta, lambda term: _survives(term, by))
    carried: Operator = Zero(*delta.shape)
    for term in (*terms(thrifty), rest):
        carried = add(carried, multiply(multiply(by.left, term), by.right.T))
    return carried


def _survives(term: Operator, by: AffineMap) -> bool:
    """Whether ``L term Rᵀ`` has the term's structure, and costs no pass over a dense matrix."""
    if by.is_shift or isinstance(term, LowRank | Zero):
        return True
    scales = all(isinstance(side, Identity | Diagonal) for side in (by.left, by.right))
    return scales and isinstance(term, Dense | Hadamard | Sparse)


def _parted(delta: Operator, belongs: Callable[[Operator], bool]) -> tuple[Operator, Operator]:
    """The terms of Δ that belong, and the rest."""
    inside: Operator = Zero(*delta.shape)
    outside: Operator = Zero(*delta.shape)
    for term in terms(delta):
        if belongs(term):
            inside = add(inside, term)
        else:
            outside = add(outside, term)
    return inside, outside
