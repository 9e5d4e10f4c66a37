"""The passes over a weight on a CPU, each of which is a compiled function."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.apply import slabs
from jaxmix.operators import Operator, Zero, terms
from jaxmix.operators.sharded import matrix_sharding, sharded_product
from jaxmix.placement.form import Form, arithmetic, as_matrix

__all__ = ["add", "in_matrix", "multiply", "run"]


def run(
    tensor: Array, steps: Iterable[AffineMap], form: Form, dtype: Any, *, donate: bool = False
) -> Array:
    """Applies folded steps to a tensor, one compiled function per pass; the last one rounds."""
    # Of a narrow dtype XLA widens all of an array to change a slab of it.
    has_slabs = tensor.dtype == dtype == arithmetic(dtype)
    passes, bare = list(_passes(steps, has_slabs)), form.bare
    for i, (operation, operators) in enumerate(passes):
        wide = dtype if i + 1 == len(passes) else arithmetic(tensor.dtype)
        run_pass = _PASSES[operation, donate and tensor.dtype == wide]
        tensor, donate = run_pass(tensor, operators, bare, wide), True
    return tensor


def _passes(
    steps: Iterable[AffineMap], has_slabs: bool
) -> Iterator[tuple[Callable[..., Array], Any]]:
    """The passes over the weight that steps need, in order."""
    for step in steps:
        if not step.is_shift:
            yield multiply, (step.left, step.right)
        added = [term for term in terms(step.shift) if not isinstance(term, Zero)]
        in_slabs = [term for term in added if has_slabs and slabs.has_slabs(term)]
        # One term alone is faster in one expression.
        if len(in_slabs) > 1:
            yield _add_by_slabs, tuple(in_slabs)
            added = [term for term in added if not slabs.has_slabs(term)]
        for term in added:
            yield add, term


def multiply(
    w: Float[Array, "out in"], operators: tuple[Operator, Operator], dtype: Any, sharding: Any
) -> Array:
    """``L W Rᵀ``."""
    left, right = operators
    return sharded_product(left, w.astype(arithmetic(w.dtype)), right, sharding).astype(dtype)


def add(w: Float[Array, "out in"], delta: Operator, dtype: Any, sharding: Any) -> Array:
    """``W + Δ`` in one expression."""
    return delta.added_to(w.astype(arithmetic(w.dtype))).astype(dtype)


def _add_by_slabs(
    w: Float[Array, "out in"], in_slabs: tuple[Operator, ...], dtype: Any, sharding: Any
) -> Array:
    """``W + Δ`` for several terms that have slabs."""
    return slabs.added(w, in_slabs)


def in_matrix(
    operation: Callable[[Any, Any, Any, Any], Any],
    tensor: Array,
    operators: Any,
    form: Form,
    dtype: Any,
) -> Array:
    """One pass over a tensor's matrix, computed in float32 or wider."""
    leaf_sharding = form.sharding if form.is_plain else None
    with jax.default_matmul_precision("highest"):
        matrix, sharding = (
            as_matrix(tensor, form.part),
            matrix_sharding(leaf_sharding, tensor.shape),
        )
        out = operation(matrix, operators, dtype, sharding).reshape(tensor.shape)
    return out if leaf_sharding is None else lax.with_sharding_constraint(out, leaf_sharding)


_PASSES = {
    (operation, in_place): jax.jit(
        partial(in_matrix, operation),
        static_argnames=("form", "dtype"),
        donate_argnames=("tensor",) if in_place else (),
    )
    for operation in (multiply, add, _add_by_slabs)
    for in_place in (False, True)
}
