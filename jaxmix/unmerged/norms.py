"""The norms that DoRA divides by, computed once when adapters are attached.

They depend on the base and on the update's factors, and not on its strength, so they do not change
between calls. Taking them reads the whole weight, which costs as much as the base's own product
with a few tokens.

The held norms are used where their arrays are those of the call. If these were changed meanwhile,
for example by a step of an optimizer on the attached tree, the norms are computed again. Gradients
are those of norms that are computed at each call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxmix.families.base import Update
from jaxmix.pytrees import register_dataclass

__all__ = ["HeldNorms", "hold", "use"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class HeldNorms:
    """The norms of one update at one site.

    Args:
        norms: The norms, in the dtype of the arithmetic.
        mark: The checksum of the arrays that they were computed from, as two floats: gradients by
            the leaves of a tree have no integers.
    """

    norms: Float[Array, " n"]
    mark: Float[Array, "2"]


# The norms of an update, from the update and the leaf's array.
Compute = Callable[[Update, Any], Array]


def hold(update: Update, array: Array, compute: Compute) -> HeldNorms:
    """Computes the norms of an update.

    Args:
        update: The update, in the dtype of the arithmetic.
        array: The leaf's array.
        compute: Computes its norms.

    Returns:
        The norms, with the mark of the arrays.
    """
    return HeldNorms(compute(update, array), _mark(update, array))


def use(held: HeldNorms, update: Update, array: Array, compute: Compute) -> Float[Array, " n"]:
    """Returns held norms, or computes them if the arrays changed.

    Args:
        held: The norms that were held when the adapters were attached.
        update: The update now.
        array: The leaf's array now.
        compute: Computes its norms.

    Returns:
        The norms, with the gradient of `compute`.
    """

    @jax.custom_jvp
    def norms(held: HeldNorms, update: Update, array: Array) -> Array:
        # A cast of the whole tree changes the dtype of what is held.
        stored = held.norms.astype(jax.eval_shape(compute, update, array).dtype)
        is_fresh = (held.mark == _mark(update, array).astype(held.mark.dtype)).all()
        return lax.cond(
            is_fresh,
            lambda stored, update, array: stored,
            lambda stored, update, array: compute(update, array),
            stored,
            update,
            array,
        )

    def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
        return jax.jvp(compute, primals[1:], tangents[1:])

    norms.defjvp(derivative)
    return norms(held, update, array)


def _mark(update: Update, array: Array) -> Float[Array, "2"]:
    """A checksum of an update's bits, and of the bits of a row and a column of the leaf.

    It does not depend on the order of the sum. The whole leaf would have to be read for a checksum
    of all its numbers. A step of an optimizer changes whole rows, if not all of them (an embedding
    has a gradient only for the tokens of a batch), so it changes the column.
    """
    total, array = jnp.zeros((), np.uint32), jnp.asarray(array)
    for part in (*jax.tree.leaves(update), array[0], array[..., 0]):
        total = total + _bits(jnp.asarray(part)).sum(dtype=np.uint32)
    return jnp.stack([total & 0xFFFF, total >> 16]).astype(np.float32)


def _bits(x: Array) -> Array:
    """The bits of an array as 32-bit integers."""
    if x.dtype.itemsize >= 4:
        return lax.bitcast_convert_type(x, np.uint32)
    kind = {1: np.uint8, 2: np.uint16}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, kind).astype(np.uint32)
