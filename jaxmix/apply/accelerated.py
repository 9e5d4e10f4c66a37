"""Runs folded steps on one leaf for an accelerator's compiler: few passes, and no float32 copy.

Where all steps rotate one side of a large matrix in blocks, the leaf is changed in place slab by
slab. A slab holds whole blocks, and everything that happens to it happens before it is rounded. One
product with all blocks would write a second matrix, often in another layout, and copy it back. A
small matrix stays in the chip's fast memory meanwhile, where this is cheaper than many small slabs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Product,
)
from jaxmix.operators.adding import added_in_one_pass, plus, prepared
from jaxmix.operators.backends import Backend
from jaxmix.operators.loops import carry
from jaxmix.operators.sharded import sharded_product
from jaxmix.placement.form import arithmetic

__all__ = ["run"]

# The rows or columns of a slab: a multiple of what the matrix units of all TPUs hold (v5e: 128,
# v6e: 256). Over a bare pass, 128 took 1.81 and 2.06 (v5e, v6e), 256 1.75 and 1.73, 512 2.17, 1.64.
SLAB = 256
# Slabs in one iteration of the loop. Of two slabs XLA reads and rotates each directly in the leaf,
# where with one slab it copies the slab first: v6e took 1.76 with one, and 1.43 with two.
UNROLL = 2
# Up to this many bytes a matrix is rotated by one product: a quarter of the fast memory of v5e and
# v6e. A weight (1024, 4096) took 2.2 where slabs took 3.4.
SMALL = 2**25
# The blocks of this product: what v5e's matrix units hold; v6e takes 128 and 256 alike.
BLOCK = 128


def run(
    backend: Backend,
    matrix: Float[Array, "rows cols"],
    steps: Sequence[AffineMap],
    sharding: jax.sharding.NamedSharding | None,
    *,
    is_whole: bool,
) -> Float[Array, "rows cols"]:
    """Applies steps to a leaf's matrix, in a traced function.

    Args:
        backend: Which forms to choose.
        matrix: The matrix, in the leaf's own dtype.
        steps: The folded steps, in order.
        sharding: The matrix's sharding; None if unknown or on one device.
        is_whole: Whether the matrix is known to be on one device.

    Returns:
        The new matrix, rounded once.
    """
    if is_whole:
        axis = _rotated_axis(steps, matrix.shape)
        if axis is not None and matrix.size * matrix.dtype.itemsize > SMALL:
            return _by_slabs(backend, matrix, steps, axis)
        steps = [_in_large_blocks(step) for step in steps]
    x = matrix
    for i, step in enumerate(steps):
        dtype = matrix.dtype if i + 1 == len(steps) else arithmetic(matrix.dtype)
        if not step.is_shift:
            x = x.astype(arithmetic(matrix.dtype))
            x = sharded_product(step.left, x, step.right, sharding)
        is_leaf = i == 0 and step.is_shift
        x = added_in_one_pass(backend, x, step.shift, dtype, is_leaf=is_leaf)
    return x.astype(matrix.dtype)


def _in_large_blocks(step: AffineMap) -> AffineMap:
    """The same step, with blocks that fill the matrix units."""

    def large(side: Operator) -> Operator:
        if isinstance(side, Product):
            return Product(large(side.first), large(side.second))
        if not isinstance(side, BlockDiagonal) or BLOCK % side.block_size or side.shape[0] % BLOCK:
            return side
        return side.coarse(BLOCK)

    return AffineMap(large(step.left), large(step.right), step.shift)


# ---------------------------------------------------------------- slab by slab


@dataclass(frozen=True)
class _SlabStep:
    """A step, prepared to be applied to one slab.

    Args:
        blocks: The blocks of the rotation, one per slab; None if the step does not rotate.
        along: The diagonal on the axis of the slabs; None if absent.
        across: The diagonal on the other axis; None if absent.
        terms: Δ's terms.
    """

    blocks: Array | None
    along: Diagonal | None
    across: Diagonal | None
    terms: tuple[Operator, ...]


def _rotated_axis(steps: Sequence[AffineMap], shape: tuple[int, ...]) -> Literal[0, 1] | None:
    """The axis on which steps rotate in blocks that fit slabs; None if there is not exactly one."""
    axes: set[Literal[0, 1]] = set()
    for step in steps:
        sides: tuple[tuple[Literal[0, 1], Operator], ...] = ((0, step.left), (1, step.right))
        for axis, side in sides:
            if isinstance(side, BlockDiagonal):
                axes.add(axis)
                if SLAB % side.block_size:
                    return None
            elif not isinstance(side, Identity | Diagonal):
                return None
    axis = axes.pop() if len(axes) == 1 else None
    return None if axis is None or shape[axis] % SLAB else axis


def _by_slabs(
    backend: Backend, matrix: Array, steps: Sequence[AffineMap], axis: Literal[0, 1]
) -> Array:
    """Applies steps that rotate one axis only."""
    ready = [_slab_step(backend, step, axis) for step in steps]
    wide = arithmetic(matrix.dtype)

    def change(i: Array, matrix: Array) -> Array:
        start = i * SLAB
        x = jax.lax.dynamic_slice_in_dim(matrix, start, SLAB, axis)
        for step in ready:
            if step.blocks is not None:
                block, x = jnp.asarray(step.blocks)[i], x.astype(wide)
                x = block @ x if axis == 0 else x @ block.T
            for diagonal, where in ((step.along, axis), (step.across, 1 - axis)):
                if diagonal is not None:
                    d = _cut(diagonal.d, start, 0) if where == axis else diagonal.d
                    part = Diagonal(d, diagonal.gates)
                    x = part @ x.astype(wide) if where == 0 else x.astype(wide) @ part
            terms = tuple(_slab_of(term, start, axis) for term in step.terms)
            x = plus(backend, x.astype(wide), terms)
        return jax.lax.dynamic_update_slice_in_dim(matrix, x.astype(matrix.dtype), start, axis)

    start = carry(matrix, steps)
    return jax.lax.fori_loop(0, matrix.shape[axis] // SLAB, change, start, unroll=UNROLL)


def _slab_step(backend: Backend, step: AffineMap, axis: Literal[0, 1]) -> _SlabStep:
    """Prepares a step outside the loop."""
    along, across = (step.left, step.right) if axis == 0 else (step.right, step.left)
    # Without the barrier XLA builds all blocks anew for each slab.
    is_rotation = isinstance(along, BlockDiagonal)
    blocks = jax.lax.optimization_barrier(along.coarse(SLAB).all_blocks()) if is_rotation else None
    return _SlabStep(
        blocks,
        along if isinstance(along, Diagonal) else None,
        across if isinstance(across, Diagonal) else None,
        prepared(backend, step.shift),
    )


def _slab_of(term: Operator, start: Array, axis: Literal[0, 1]) -> Operator:
    """The rows or columns of a term in the slab that starts here."""
    match term:
        case LowRank() if axis == 0:
            return LowRank(_cut(term.b, start, 0), term.a)
        case LowRank():
            return LowRank(term.b, _cut(term.a, start, 1))
        case Hadamard():
            left, right = (_slab_of(side, start, axis) for side in (term.left, term.right))
            assert isinstance(left, LowRank) and isinstance(right, LowRank)
            return Hadamard(left, right)
        case Kronecker():
            return Dense(_slab_of_kronecker(term, start, axis))
        case _:
            return Dense(_cut(term.dense(), start, axis))


def _slab_of_kronecker(term: Kronecker, start: Array, axis: Literal[0, 1]) -> Array:
    """The rows or columns of ``X ⊗ Y`` in the slab that starts here."""
    if axis == 1:
        return _slab_of_kronecker(term.T, start, 0).T
    rows, (k, n) = start + jnp.arange(SLAB, dtype=start.dtype), term.y.shape
    x, y = jnp.asarray(term.x)[rows // k], jnp.asarray(term.y)[rows % k]
    return jnp.repeat(x, n, axis=1) * jnp.tile(y, (1, x.shape[1]))


def _cut(x: Array, start: Array, axis: int) -> Array:
    """The part of an array in the slab that starts here."""
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, SLAB, axis)
