"""Sums and products of operators whose structures do not merge."""

from dataclasses import dataclass
from functools import reduce

import jax
from jaxtyping import Array

from jaxmix.operators.base import Operator
from jaxmix.pytrees import register_dataclass

__all__ = ["Product", "Sum", "terms"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """``M₁ + … + Mₙ``, where the structures of the terms do not merge.

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

    def take_rows(self, at: Array) -> Array:
        first, *rest = self.terms
        return reduce(lambda y, term: y + term.take_rows(at), rest, first.take_rows(at))

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


@register_dataclass
@dataclass(frozen=True, eq=False)
class Product(Operator):
    """``M₁ M₂``, where the structures of the factors do not merge.

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
        if self._flops_second_dense() <= self._flops_first_dense():
            return self.first @ self.second.dense()
        return self.first.dense() @ self.second

    def scaled(self, factor: Array | float) -> "Product":
        if _count_entries(self.first) <= _count_entries(self.second):
            return Product(self.first.scaled(factor), self.second)
        return Product(self.first, self.second.scaled(factor))

    def __matmul__(self, x: Array) -> Array:
        return self.first @ (self.second @ x)

    def __rmatmul__(self, x: Array) -> Array:
        return (x @ self.first) @ self.second

    def take_rows(self, at: Array) -> Array:
        return self.first.take_rows(at) @ self.second

    def rows(self, part: slice) -> "Product":
        return Product(self.first.rows(part), self.second)

    def flops(self) -> int:
        return min(self._flops_second_dense(), self._flops_first_dense())

    def matmul_flops(self, n: int) -> int:
        return self.second.matmul_flops(n) + self.first.matmul_flops(n)

    def _flops_second_dense(self) -> int:
        """The cost of making M₂ dense and multiplying it with M₁ from the left."""
        return self.second.flops() + self.first.matmul_flops(self.shape[1])

    def _flops_first_dense(self) -> int:
        """The cost of making M₁ dense and multiplying it with M₂ from the right."""
        return self.first.flops() + self.second.T.matmul_flops(self.shape[0])


def terms(operator: Operator) -> tuple[Operator, ...]:
    """Returns the terms of a sum, or the operator itself as the only term.

    Args:
        operator: Any operator.

    Returns:
        The terms, at least one.

    Example:
        >>> from jaxmix.operators import Identity
        >>> len(terms(Identity(2))), len(terms(Sum((Identity(2), Identity(2)))))
        (1, 2)
    """
    return operator.terms if isinstance(operator, Sum) else (operator,)


def _count_entries(x: Operator) -> int:
    """Returns how many array entries an operator holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(x))
