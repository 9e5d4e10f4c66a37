"""Affine maps of a weight, ``W ↦ L W Rᵀ + Δ``, and their composition.

Every update of every family is such a map, of a weight (out, in) and, with matrices (out, 1), of a
bias. They form a monoid: ``(L₂, R₂, Δ₂) ∘ (L₁, R₁, Δ₁) = (L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``.
`AffineMap.after` is this product; `fold` is the same product in steps, which keeps later rotations
from making a structured Δ dense.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
from jaxmix.pytrees import register_dataclass

__all__ = ["AffineMap", "Base", "fold", "identity", "shift"]


@register_dataclass
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
        """``(out, in)`` of the mapped matrices."""
        return self.shift.shape

    @property
    def is_shift(self) -> bool:
        """Whether L and R are the identity."""
        return isinstance(self.left, Identity) and isinstance(self.right, Identity)

    @property
    def T(self) -> "AffineMap":
        """The same map of the transposed matrix: ``Wᵀ ↦ R Wᵀ Lᵀ + Δᵀ``."""
        return AffineMap(self.right, self.left, self.shift.T)

    def after(self, earlier: "AffineMap") -> "AffineMap":
        """Returns the composition ``self ∘ earlier``: ``(L₂L₁, R₂R₁, L₂Δ₁R₂ᵀ + Δ₂)``.

        Args:
            earlier: The map that is applied first, of matrices of the same shape.

        Returns:
            One map. Its Δ contains a `Product` where a structure is lost under L₂ or R₂.

        Raises:
            ShapeError: If they map matrices of different shapes.
        """
        return AffineMap(
            multiply(self.left, earlier.left),
            multiply(self.right, earlier.right),
            add(_carried(self, earlier.shift), self.shift),
        )

    def __call__(self, w: Float[Array, "out in"]) -> Float[Array, "out in"]:
        """``L W Rᵀ + Δ``."""
        w = self.left @ w
        w = w if isinstance(self.right, Identity) else w @ self.right.T
        return self.shift.added_to(w)

    def flops(self) -> int:
        """Returns the multiplications and additions of applying the map to a dense W."""
        out_size, in_size = self.shape
        turning = self.left.matmul_flops(in_size) + self.right.matmul_flops(out_size)
        return turning + self.shift.added_flops()


@register_dataclass
@dataclass(frozen=True, eq=False)
class Base:
    """The base's leaves at a site, which an update may read.

    Args:
        matrix: The base's weight as (out, in), for updates with ``reads_base``; otherwise None.
        shape: (out, in) of the weight, always given.
        bias: The base's bias as (out, 1), for maps of the bias of updates with ``reads_base``;
            otherwise None.
        stored: The dtype in which the weight is stored; None if the matrix is not exactly it.
        is_transposed: Whether the weight is stored as (in, out), so the matrix is a transpose.
        precomputed: The value of the update's `Update.precompute`; None to compute it.

    Example:
        >>> import jax.numpy as jnp
        >>> Base(jnp.ones((2, 3)), (2, 3)).read("matrix").shape
        (2, 3)
    """

    matrix: Float[Array, "out in"] | None
    shape: tuple[int, int] = field(metadata={"static": True})
    bias: Float[Array, "out 1"] | None = None
    stored: Any = field(default=None, metadata={"static": True})
    is_transposed: bool = field(default=False, metadata={"static": True})
    precomputed: Float[Array, "..."] | None = None

    def read(self, leaf: Literal["matrix", "bias"]) -> Float[Array, "out n"]:
        """Returns the leaf of this name, for a map that needs it.

        Args:
            leaf: The name.

        Raises:
            ValueError: If it is None, which is a bug in the code that runs the map.
        """
        value = self.matrix if leaf == "matrix" else self.bias
        if value is None:
            raise ValueError(
                f"a map of a weight {self.shape} reads the base's {leaf}, found None. Pass "
                f"Base.{leaf} to updates whose reads_base is true."
            )
        return value


def identity(shape: tuple[int, int]) -> AffineMap:
    """Returns the map that changes nothing.

    Args:
        shape: (out, in) of the matrices.

    Returns:
        ``(I, I, 0)``.
    """
    return shift(Zero(*shape))


def shift(delta: Operator) -> AffineMap:
    """Returns the map ``W ↦ W + Δ``.

    Args:
        delta: Δ (out, in).

    Returns:
        ``(I, I, Δ)``.
    """
    out_size, in_size = delta.shape
    return AffineMap(Identity(out_size), Identity(in_size), delta)


def fold(chain: Sequence[AffineMap]) -> tuple[AffineMap, ...]:
    """Composes maps in as few steps as their structures allow.

    Low-rank terms are carried through each later L and R and become one product at the end. Other
    terms stay in place; a step ends only before an L or R under which they would lose their
    structure. Therefore terms of one kind have the same cost at every position in the chain, and a
    rotation is applied once, to the weight with all earlier terms added.

    Args:
        chain: The maps, in order of application.

    Returns:
        The steps in order, whose composition is that of the maps; empty for the identity.

    Raises:
        ShapeError: If the maps are of matrices of different shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> double = AffineMap(Diagonal(jnp.full((1,), 2.0)), Identity(1), Zero(1, 1))
        >>> steps = fold([shift(Dense(jnp.ones((1, 1)))), double, double])
        >>> len(steps), float(steps[0](jnp.ones((1, 1)))[0, 0])
        (1, 8.0)
    """
    if not chain:
        return ()
    steps = [identity(chain[0].shape)]
    carried: Operator = Zero(*chain[0].shape)
    for new in chain:
        low, heavy = _parted(new.shift, lambda term: isinstance(term, LowRank))
        carried = add(_carried(new, carried), low)
        step = AffineMap(new.left, new.right, heavy)
        if all(_survives(term, step) for term in terms(steps[-1].shift)):
            steps[-1] = step.after(steps[-1])
        else:
            steps.append(step)
    steps[-1] = shift(carried).after(steps[-1])
    return tuple(step for step in steps if not (step.is_shift and isinstance(step.shift, Zero)))


def _carried(by: AffineMap, delta: Operator) -> Operator:
    """``L Δ Rᵀ``: terms that keep their structure are mapped separately, the others together."""
    if by.is_shift:
        return delta
    thrifty, others = _parted(delta, lambda term: _survives(term, by))
    carried: Operator = Zero(*delta.shape)
    for term in (*terms(thrifty), others):
        carried = add(carried, multiply(multiply(by.left, term), by.right.T))
    return carried


def _survives(term: Operator, by: AffineMap) -> bool:
    """Whether ``L term Rᵀ`` has the term's structure and needs no pass over a dense matrix."""
    if by.is_shift or isinstance(term, LowRank | Zero):
        return True
    scales = all(isinstance(side, Identity | Diagonal) for side in (by.left, by.right))
    return scales and isinstance(term, Dense | Hadamard | Sparse)


def _parted(delta: Operator, belongs: Callable[[Operator], bool]) -> tuple[Operator, Operator]:
    """The terms of Δ for which a predicate holds, and the other terms."""
    inside: Operator = Zero(*delta.shape)
    outside: Operator = Zero(*delta.shape)
    for term in terms(delta):
        if belongs(term):
            inside = add(inside, term)
        else:
            outside = add(outside, term)
    return inside, outside
