"""Structured matrices: the operators of which every update's affine map is made.

An operator is a matrix ``(rows, cols)`` that remembers its structure. It can be made dense, multiply
a dense matrix, be transposed, sliced by rows or columns, scaled, and say what it costs. `add` and
`multiply` fold two of them into one where the structure allows: low rank under anything stays low
rank, sums of low ranks concatenate, diagonals and equal block-diagonals multiply, zero and identity
vanish. What has no thrifty form stays a `Sum` or a `Product`; nothing is silently made dense.

All are frozen dataclasses registered as pytrees: arrays are children, sizes are static.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = [
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "Hadamard",
    "Identity",
    "Kronecker",
    "LowRank",
    "Operator",
    "Product",
    "Sparse",
    "Sum",
    "Zero",
    "add",
    "multiply",
]


def _static() -> Any:
    return field(metadata={"static": True})


_operator = jax.tree_util.register_dataclass


class Operator:
    """A structured matrix ``M (rows, cols)``; the subclasses say of which structure."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        raise NotImplementedError

    @property
    def T(self) -> "Operator":
        """The transpose ``Mᵀ``, of the same structure."""
        raise NotImplementedError

    def dense(self) -> Float[Array, "rows cols"]:
        """The matrix itself."""
        raise NotImplementedError

    def scaled(self, factor: Float[Array, ""]) -> "Operator":
        """``factor · M``; the factor goes where the fewest numbers are."""
        raise NotImplementedError

    def __matmul__(self, x: Float[Array, "cols n"]) -> Float[Array, "rows n"]:
        """``M x`` for a dense ``x``, by the structure."""
        return self.dense() @ x

    def rows(self, part: slice) -> "Operator":
        """``M[part, :]``, structured where it can be."""
        return Dense(self.dense()[part])

    def cols(self, part: slice) -> "Operator":
        """``M[:, part]``, structured where it can be."""
        return self.T.rows(part).T

    def flops(self) -> int:
        """Multiplications and additions that making it dense takes."""
        raise NotImplementedError


@_operator
@dataclass(frozen=True)
class Zero(Operator):
    """The zero matrix."""

    n_rows: int = _static()
    n_cols: int = _static()

    @property
    def shape(self):
        return self.n_rows, self.n_cols

    @property
    def T(self):
        return Zero(self.n_cols, self.n_rows)

    def dense(self):
        return jnp.zeros(self.shape)

    def scaled(self, factor):
        return self

    def __matmul__(self, x):
        return jnp.zeros((self.n_rows, x.shape[1]), x.dtype)

    def rows(self, part):
        return Zero(len(range(*part.indices(self.n_rows))), self.n_cols)

    def flops(self):
        return 0


@_operator
@dataclass(frozen=True)
class Identity(Operator):
    """The identity matrix of a size."""

    size: int = _static()

    @property
    def shape(self):
        return self.size, self.size

    @property
    def T(self):
        return self

    def dense(self):
        return jnp.eye(self.size)

    def scaled(self, factor):
        return Diagonal(jnp.full((self.size,), factor))

    def __matmul__(self, x):
        return x

    def flops(self):
        return 0


@_operator
@dataclass(frozen=True)
class Diagonal(Operator):
    """``diag(d)``."""

    d: Float[Array, " n"]

    @property
    def shape(self):
        return self.d.shape[0], self.d.shape[0]

    @property
    def T(self):
        return self

    def dense(self):
        return jnp.diag(self.d)

    def scaled(self, factor):
        return Diagonal(factor * self.d)

    def __matmul__(self, x):
        return self.d[:, None] * x

    def flops(self):
        return self.d.shape[0]


@_operator
@dataclass(frozen=True)
class BlockDiagonal(Operator):
    """``diag(M₁ … Mₖ)``, square blocks of one size, the whole run of them ``copies`` times over."""

    blocks: Float[Array, "k b b"]
    copies: int = _static()

    @property
    def shape(self):
        n = self.blocks.shape[0] * self.blocks.shape[1] * self.copies
        return n, n

    @property
    def T(self):
        return BlockDiagonal(jnp.swapaxes(self.blocks, 1, 2), self.copies)

    def all_blocks(self) -> Float[Array, "kc b b"]:
        """Every block written out, copies too."""
        return jnp.tile(self.blocks, (self.copies, 1, 1)) if self.copies > 1 else self.blocks

    def dense(self):
        blocks = self.all_blocks()
        k, b, _ = blocks.shape
        spread = jnp.einsum("kab,kj->kajb", blocks, jnp.eye(k, dtype=blocks.dtype))
        return spread.reshape(k * b, k * b)

    def scaled(self, factor):
        return BlockDiagonal(factor * self.blocks, self.copies)

    def __matmul__(self, x):
        blocks = self.all_blocks()
        k, b, _ = blocks.shape
        return (blocks @ x.reshape(k, b, x.shape[1])).reshape(x.shape)

    def flops(self):
        return self.shape[0] * self.blocks.shape[1]


@_operator
@dataclass(frozen=True)
class LowRank(Operator):
    """``B A``: B (rows, r), A (r, cols)."""

    b: Float[Array, "rows r"]
    a: Float[Array, "r cols"]

    @property
    def rank(self) -> int:
        """The inner dimension r: an upper bound of the matrix's rank."""
        return self.a.shape[0]

    @property
    def shape(self):
        return self.b.shape[0], self.a.shape[1]

    @property
    def T(self):
        return LowRank(self.a.T, self.b.T)

    def dense(self):
        return self.b @ self.a

    def scaled(self, factor):
        if self.b.size < self.a.size:
            return LowRank(factor * self.b, self.a)
        return LowRank(self.b, factor * self.a)

    def __matmul__(self, x):
        return self.b @ (self.a @ x)

    def rows(self, part):
        return LowRank(self.b[part], self.a)

    def flops(self):
        return 2 * self.rank * math.prod(self.shape)


@_operator
@dataclass(frozen=True)
class Hadamard(Operator):
    """``(B₁A₁) ⊙ (B₂A₂)``, the elementwise product of two low ranks."""

    left: LowRank
    right: LowRank

    @property
    def shape(self):
        return self.left.shape

    @property
    def T(self):
        return Hadamard(self.left.T, self.right.T)

    def dense(self):
        return self.left.dense() * self.right.dense()

    def scaled(self, factor):
        return Hadamard(self.left.scaled(factor), self.right)

    def __matmul__(self, x):
        return self.low_rank() @ x

    def low_rank(self) -> LowRank:
        """The same matrix as one product of rank r₁r₂, by Khatri-Rao.

        ``(B₁A₁) ⊙ (B₂A₂) = (B₁ ∗ B₂)(A₁ ∗ A₂)``, with ``∗`` the product of each row's (column's)
        entries with each other's.
        """
        b = self.left.b[:, :, None] * self.right.b[:, None, :]
        a = self.left.a[:, None, :] * self.right.a[None, :, :]
        return LowRank(b.reshape(b.shape[0], -1), a.reshape(-1, a.shape[2]))

    def rows(self, part):
        # A LowRank's rows are one again; spelt out, since `rows` promises no more than an Operator.
        left, right = self.left, self.right
        return Hadamard(LowRank(left.b[part], left.a), LowRank(right.b[part], right.a))

    def flops(self):
        return self.left.flops() + self.right.flops() + math.prod(self.shape)


@_operator
@dataclass(frozen=True)
class Kronecker(Operator):
    """``X ⊗ Y``: the entry ``[i·k + p, j·n + q]`` is ``X[i, j] · Y[p, q]``, with Y (k, n)."""

    x: Float[Array, "l m"]
    y: Float[Array, "k n"]

    @property
    def shape(self):
        return self.x.shape[0] * self.y.shape[0], self.x.shape[1] * self.y.shape[1]

    @property
    def T(self):
        return Kronecker(self.x.T, self.y.T)

    def dense(self):
        spread = self.x[:, None, :, None] * self.y[None, :, None, :]
        return spread.reshape(self.shape)

    def scaled(self, factor):
        if self.x.size < self.y.size:
            return Kronecker(factor * self.x, self.y)
        return Kronecker(self.x, factor * self.y)

    def __matmul__(self, v):
        (_, m), (_, n) = self.x.shape, self.y.shape
        wide = jnp.einsum("lm,kn,mnc->lkc", self.x, self.y, v.reshape(m, n, v.shape[1]))
        return wide.reshape(self.shape[0], v.shape[1])

    def rows(self, part):
        k = self.y.shape[0]
        picked = range(*part.indices(self.shape[0]))
        if picked.step == 1 and picked.start % k == 0 and picked.stop % k == 0:
            return Kronecker(self.x[picked.start // k : picked.stop // k], self.y)
        i = jnp.asarray(picked, dtype=jnp.int32)
        rows = self.x[i // k][:, :, None] * self.y[i % k][:, None, :]
        return Dense(rows.reshape(len(picked), self.shape[1]))

    def flops(self):
        return math.prod(self.shape)


@_operator
@dataclass(frozen=True)
class Sparse(Operator):
    """``M[i, j] = Σ v`` over the entries listed; an entry listed twice counts twice."""

    values: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    n_rows: int = _static()
    n_cols: int = _static()

    @property
    def shape(self):
        return self.n_rows, self.n_cols

    @property
    def T(self):
        return Sparse(self.values, self.indices[::-1], self.n_cols, self.n_rows)

    def dense(self):
        return self.added_to(jnp.zeros(self.shape, self.values.dtype))

    def added_to(self, x: Float[Array, "rows cols"]) -> Float[Array, "rows cols"]:
        """``x + M``, touching only the entries listed."""
        return x.at[self.indices[0], self.indices[1]].add(self.values)

    def scaled(self, factor):
        return Sparse(factor * self.values, self.indices, self.n_rows, self.n_cols)

    def __matmul__(self, x):
        out = jnp.zeros((self.n_rows, x.shape[1]), x.dtype)
        return out.at[self.indices[0]].add(self.values[:, None] * x[self.indices[1]])

    def rows(self, part):
        picked = range(*part.indices(self.n_rows))
        if picked.step != 1:
            return Dense(self.dense()[part])
        i = self.indices[0] - picked.start
        # Entries outside stay listed, with the value 0: how many fall inside is not static.
        inside = (i >= 0) & (i < len(picked))
        indices = jnp.stack([jnp.where(inside, i, 0), self.indices[1]])
        values = jnp.where(inside, self.values, jnp.zeros_like(self.values))
        return Sparse(values, indices, len(picked), self.n_cols)

    def flops(self):
        return self.values.shape[0]


@_operator
@dataclass(frozen=True)
class Dense(Operator):
    """A matrix with no structure to use."""

    matrix: Float[Array, "rows cols"]

    @property
    def shape(self):
        return self.matrix.shape

    @property
    def T(self):
        return Dense(self.matrix.T)

    def dense(self):
        return self.matrix

    def scaled(self, factor):
        return Dense(factor * self.matrix)

    def flops(self):
        return math.prod(self.shape)


@_operator
@dataclass(frozen=True)
class Sum(Operator):
    """``M₁ + … + Mₙ``, of different structures."""

    terms: tuple[Operator, ...]

    @property
    def shape(self):
        return self.terms[0].shape

    @property
    def T(self):
        return Sum(tuple(term.T for term in self.terms))

    def dense(self):
        total = self.terms[0].dense()
        for term in self.terms[1:]:
            total = term.added_to(total) if isinstance(term, Sparse) else total + term.dense()
        return total

    def scaled(self, factor):
        return Sum(tuple(term.scaled(factor) for term in self.terms))

    def __matmul__(self, x):
        return sum((term @ x for term in self.terms[1:]), self.terms[0] @ x)

    def rows(self, part):
        return Sum(tuple(term.rows(part) for term in self.terms))

    def flops(self):
        return sum(t.flops() for t in self.terms) + (len(self.terms) - 1) * math.prod(self.shape)


@_operator
@dataclass(frozen=True)
class Product(Operator):
    """``M₁ M₂``, of structures that do not merge."""

    first: Operator
    second: Operator

    @property
    def shape(self):
        return self.first.shape[0], self.second.shape[1]

    @property
    def T(self):
        return Product(self.second.T, self.first.T)

    def dense(self):
        # Start from the side that is dearer to apply and let the other one multiply it.
        if self.first.flops() > self.second.flops():
            return (self.second.T @ self.first.dense().T).T
        return self.first @ self.second.dense()

    def scaled(self, factor):
        if self.first.flops() < self.second.flops():
            return Product(self.first.scaled(factor), self.second)
        return Product(self.first, self.second.scaled(factor))

    def __matmul__(self, x):
        return self.first @ (self.second @ x)

    def rows(self, part):
        return Product(self.first.rows(part), self.second)

    def flops(self):
        rows, cols = self.shape
        first, second = self.first.flops(), self.second.flops()
        return first + second + 2 * min(first * cols, second * rows)


def add(x: Operator, y: Operator) -> Operator:
    """``x + y``, folded: zeros vanish, low ranks concatenate, equal structures merge.

    Args:
        x: a matrix (rows, cols).
        y: another of the same shape.

    Returns:
        One operator; a `Sum` with at most one term of each structure that merges.
    """
    if isinstance(x, Zero):
        return y
    if isinstance(y, Zero):
        return x
    terms = list(x.terms if isinstance(x, Sum) else (x,))
    for new in y.terms if isinstance(y, Sum) else (y,):
        for i, old in enumerate(terms):
            if (merged := _merged(old, new)) is not None:
                terms[i] = merged
                break
        else:
            terms.append(new)
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def _merged(x: Operator, y: Operator) -> Operator | None:
    """``x + y`` as one operator of their structure, or None."""
    match x, y:
        case LowRank(), LowRank():
            return LowRank(jnp.concatenate([x.b, y.b], 1), jnp.concatenate([x.a, y.a], 0))
        case Sparse(), Sparse():
            values = jnp.concatenate([x.values, y.values])
            return Sparse(values, jnp.concatenate([x.indices, y.indices], 1), *x.shape)
        case Dense(), Dense():
            return Dense(x.matrix + y.matrix)
        case Diagonal(), Diagonal():
            return Diagonal(x.d + y.d)
        case _:
            return None


def multiply(x: Operator, y: Operator) -> Operator:
    """``x y``, folded: identities vanish, low rank stays low rank, diagonals and blocks multiply.

    Args:
        x: a matrix (rows, n).
        y: a matrix (n, cols).

    Returns:
        One operator; a `Product` where the structures do not merge.
    """
    if isinstance(x, Identity):
        return y
    if isinstance(y, Identity):
        return x
    if isinstance(x, Zero) or isinstance(y, Zero):
        return Zero(x.shape[0], y.shape[1])
    match x, y:
        case LowRank(), LowRank() if x.rank > y.rank:
            return LowRank(x @ y.b, y.a)
        case LowRank(), _:
            return LowRank(x.b, (y.T @ x.a.T).T)
        case _, LowRank():
            return LowRank(x @ y.b, y.a)
        case Diagonal(), Diagonal():
            return Diagonal(x.d * y.d)
        case BlockDiagonal(), BlockDiagonal() if x.blocks.shape[1] == y.blocks.shape[1]:
            if x.blocks.shape[0] == y.blocks.shape[0]:
                return BlockDiagonal(x.blocks @ y.blocks, x.copies)
            return BlockDiagonal(x.all_blocks() @ y.all_blocks(), 1)
        case Diagonal(), BlockDiagonal():
            d = x.d.reshape(-1, y.blocks.shape[1], 1)
            return BlockDiagonal(d * y.all_blocks(), 1)
        case BlockDiagonal(), Diagonal():
            return multiply(y.T, x.T).T
        case Diagonal(), Hadamard():
            return Hadamard(LowRank(x @ y.left.b, y.left.a), y.right)
        case Hadamard(), Diagonal():
            return multiply(y.T, x.T).T
        case Diagonal(), Sparse():
            return Sparse(x.d[y.indices[0]] * y.values, y.indices, *y.shape)
        case Sparse(), Diagonal():
            return multiply(y.T, x.T).T
        case Dense(), _:
            return Dense((y.T @ x.matrix.T).T)
        case _, Dense():
            return Dense(x @ y.matrix)
        case _:
            return Product(x, y)
