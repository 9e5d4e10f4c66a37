"""Operators made of operators whose structures do not merge."""

from dataclasses import dataclass
from functools import reduce

import jax
from jaxtyping import Array

from jaxmix.operators.base import Operator

__all__ = ["Product", "Sum"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """``M₁ + … + Mₙ``, of structures that do not merge.

    Args:
        terms: The operators, at least one, all of one shape.

    Example:
        >>> from jaxmix.operators import Identity
        >>> Sum((Identity(1), Identity(1))).dense().tolist()
        [[2.0]]
    """

    terms: tuple[Operator, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.terms[0].shape

    @property
    def T(self) -> "Sum":
        return Sum(tuple(term.T for term in self.terms))

    def dense(self) -> Array:
        return reduce(lambda x, term: term.added_to(x), self.terms[1:], self.terms[0].dense())

    def scaled(self, factor: Array | float) -> "Sum":
        return Sum(tuple(term.scaled(factor) for term in self.terms))

    def __matmul__(self, x: Array) -> Array:
        return reduce(lambda y, term: y + term @ x, self.terms[1:], self.terms[0] @ x)

    def __rmatmul__(self, x: Array) -> Array:
        return reduce(lambda y, term: y + x @ term, self.terms[1:], x @ self.terms[0])

    def picked_rows(self, at: Array) -> Array:
        first, *rest = self.terms
        return reduce(lambda y, term: y + term.picked_rows(at), rest, first.picked_rows(at))

    def rows(self, part: slice) -> "Sum":
        return Sum(tuple(term.rows(part) for term in self.terms))

    def flops(self) -> int:
        return self.terms[0].flops() + sum(term.added_flops() for term in self.terms[1:])

    def matmul_flops(self, n: int) -> int:
        adding = (len(self.terms) - 1) * self.shape[0] * n
        return adding + sum(term.matmul_flops(n) for term in self.terms)

    def added_to(self, x: Array) -> Array:
        return reduce(lambda y, term: term.added_to(y), self.terms, x)

    def added_flops(self) -> int:
        return sum(term.added_flops() for term in self.terms)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Product(Operator):
    """``M₁ M₂``, of structures that do not merge.

    Args:
        first: M₁ (rows, n).
        second: M₂ (n, cols).

    Example:
        >>> from jaxmix.operators import Identity, Zero
        >>> Product(Identity(2), Zero(2, 3)).shape
        (2, 3)
    """

    first: Operator
    second: Operator

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape[0], self.second.shape[1]

    @property
    def T(self) -> "Product":
        return Product(self.second.T, self.first.T)

    def dense(self) -> Array:
        if self._second_first() <= self._first_first():
            return self.first @ self.second.dense()
        return (self.second.T @ self.first.dense().T).T

    def scaled(self, factor: Array | float) -> "Product":
        if _numbers(self.first) <= _numbers(self.second):
            return Product(self.first.scaled(factor), self.second)
        return Product(self.first, self.second.scaled(factor))

    def __matmul__(self, x: Array) -> Array:
        return self.first @ (self.second @ x)

    def __rmatmul__(self, x: Array) -> Array:
        return (x @ self.first) @ self.second

    def picked_rows(self, at: Array) -> Array:
        return self.first.picked_rows(at) @ self.second

    def rows(self, part: slice) -> "Product":
        return Product(self.first.rows(part), self.second)

    def flops(self) -> int:
        return min(self._second_first(), self._first_first())

    def matmul_flops(self, n: int) -> int:
        return self.second.matmul_flops(n) + self.first.matmul_flops(n)

    def _second_first(self) -> int:
        """The cost of making M₂ dense and multiplying it by M₁."""
        return self.second.flops() + self.first.matmul_flops(self.shape[1])

    def _first_first(self) -> int:
        """The cost of making M₁ dense and multiplying it by M₂."""
        return self.first.flops() + self.second.T.matmul_flops(self.shape[0])


def _numbers(x: Operator) -> int:
    """How many numbers an operator holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(x))
