"""Values that maps are made of, computed once when adapters are attached.

They are what `Update.precompute` returns: the norms that DoRA divides by, which depend on the base
and the factors but not on the strength, and rotations, which depend on the factors and the
strength. None of them changes between calls. Norms read the whole weight, which costs as much as
the base's own product with a few tokens. Rotations are series or solutions of linear systems.

A held value is used if its inputs are those of the call. If these were changed meanwhile, for
example by a step of an optimizer on the attached tree or by another strength in it, the value is
computed again. Gradients are those of values that are computed at each call.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from jaxmix.affine import Base
from jaxmix.apply.plan import cast
from jaxmix.families.base import Update
from jaxmix.operators.backends import Backend, by_platform
from jaxmix.placement.form import At, Form, arithmetic
from jaxmix.placement.layout import Place
from jaxmix.pytrees import register_dataclass

__all__ = ["HeldValue", "Inputs", "hold", "site_base", "use"]

# The rows and columns of a TPU's tile.
_TILE = 8, 128


@register_dataclass
@dataclass(frozen=True, eq=False)
class Inputs:
    """What a value is computed from.

    Args:
        update: The update, in the dtype of the arithmetic.
        strength: Its strength; None if the value does not depend on it.
        leaf: The leaf's array; None if the value does not depend on the base.
    """

    update: Update
    strength: Any
    leaf: Any

    @classmethod
    def of(cls, update: Update, strength: Any, leaf: Any) -> "Inputs | None":
        """Returns the inputs of an update's value, or None if it has no such value."""
        sources = update.precomputed_from
        if sources is None:
            return None
        return cls(
            update,
            strength if "strength" in sources else None,
            leaf if "base" in sources else None,
        )


@register_dataclass
@dataclass(frozen=True, eq=False)
class HeldValue:
    """The value of one update at one site.

    Args:
        value: The value, in the dtype of the arithmetic.
        mark: The checksum of its inputs, as two floats: gradients by the leaves of a tree have no
            integers.
    """

    value: Float[Array, "..."]
    mark: Float[Array, "2"]


def hold(inputs: Inputs, form: Form, leaf: jax.ShapeDtypeStruct) -> HeldValue:
    """Computes a value.

    Args:
        inputs: Its inputs, in any dtypes.
        form: How the leaf holds the site's tensor.
        leaf: The leaf's shape and dtype.

    Returns:
        The value, with the mark of its inputs.
    """
    form, at = form.split_index()
    return _hold(inputs, at, form=form, leaf=leaf)


# `jit` caches the trace: all layers of one shape share it.
@partial(jax.jit, static_argnames=("form", "leaf"))
def _hold(inputs: Inputs, at: At, *, form: Form, leaf: jax.ShapeDtypeStruct) -> HeldValue:
    """The value, computed in the dtype of the arithmetic."""
    dtype = arithmetic(leaf.dtype)
    update, strength = cast((inputs.update, inputs.strength), dtype)
    inputs = replace(inputs, update=update, strength=strength)
    with jax.default_matmul_precision("highest"):
        value = _computed(inputs, at, form, leaf)
    return HeldValue(value, _mark(inputs, at, form))


def use(
    held: HeldValue, inputs: Inputs, form: Form, leaf: jax.ShapeDtypeStruct
) -> Float[Array, "..."]:
    """Returns a held value, or computes it if its inputs changed.

    Args:
        held: The value that was held when the adapters were attached.
        inputs: Its inputs now, update and strength in the dtype of the arithmetic.
        form: How the leaf holds the site's tensor.
        leaf: The leaf's shape and dtype.

    Returns:
        The value, with the gradient of a value that is computed now.
    """

    def compute(inputs: Inputs) -> Array:
        return _computed(inputs, at, form, leaf)

    form, at = form.split_index()
    if held.value.dtype != jax.eval_shape(compute, inputs).dtype:
        return compute(inputs)  # a cast of the whole tree rounded it

    @jax.custom_jvp
    def value(held: HeldValue, inputs: Inputs) -> Array:
        is_same = (held.mark == _mark(inputs, at, form).astype(held.mark.dtype)).all()
        return lax.cond(
            is_same,
            lambda held, inputs: held,
            lambda held, inputs: compute(inputs),
            held.value,
            inputs,
        )

    def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
        return jax.jvp(compute, primals[1:], tangents[1:])

    value.defjvp(derivative)
    return value(held, inputs)


def site_base(form: Form, array: Array | None, leaf: jax.ShapeDtypeStruct, at: At = ()) -> Base:
    """Returns the base of a site, as its updates read it.

    Args:
        form: How the leaf holds the site's tensor.
        array: The leaf's array; None for a base without a matrix.
        leaf: The leaf's shape and dtype.
        at: The numbers of the form's index, as `Form.split_index` returns them; () if unsplit.
    """
    shape = form.shape(leaf.shape)
    if array is None:
        return Base(None, shape, is_transposed=form.transposed)
    matrix = form.matrix(jnp.asarray(array), at).astype(arithmetic(leaf.dtype))
    stored = leaf.dtype if form.is_plain and form.scale == 1 else None
    return Base(matrix, shape, stored=stored, is_transposed=form.transposed)


def _computed(inputs: Inputs, at: At, form: Form, leaf: jax.ShapeDtypeStruct) -> Array:
    """The value."""
    base = site_base(form, inputs.leaf, leaf, at)
    return inputs.update.precompute(base, inputs.strength)


def _mark(inputs: Inputs, at: At, form: Form) -> Float[Array, "2"]:
    """A checksum of the bits of an update and its strength, and of a row and a column of the site.

    The whole weight would have to be read for a checksum of all its numbers. A step of an optimizer
    changes whole rows, if not all of them (an embedding has a gradient only for the tokens of a
    batch), so it changes the column.
    """
    parts = jax.tree.leaves((inputs.update, inputs.strength))
    if inputs.leaf is not None:
        part = Place("", None, form.index).get(jnp.asarray(inputs.leaf), at)
        total = _checksum_of_first(part, 0, len(parts))
        total = total + _checksum_of_first(part, part.ndim - 1, len(parts) + 1)
    else:
        total = jnp.zeros((), np.uint32)
    for number, part in enumerate(parts):
        total = total + _checksum(jnp.asarray(part), number)
    return jnp.stack([total & 0xFFFF, total >> 16]).astype(np.float32)


def _checksum_of_first(x: Array, axis: int, number: int) -> UInt32[Array, ""]:
    """The checksum of an array's first row or column.

    A TPU reads whole tiles anyway, and moving a column out of them takes six times as long as
    computing the checksums of all of their columns, of which only the first one's is used.
    """

    def alone(x: Array) -> Array:
        return _checksum(lax.index_in_dim(x, 0, axis, keepdims=False), number)

    def on_accelerator(backend: Backend, x: Array) -> Array:
        if not backend.has_tiles or x.dtype.itemsize > 4:
            return alone(x)
        size = _TILE[0] if axis == 0 else _TILE[1]
        tiles = _bits(lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis))
        is_first = lax.broadcasted_iota(np.uint32, tiles.shape, axis) == 0
        shape = *tiles.shape[:axis], 1, *tiles.shape[axis + 1 :]
        mixed = _mixed(tiles, _positions(shape, number))
        return jnp.where(is_first, mixed, 0).sum(dtype=np.uint32)

    return by_platform(alone, on_accelerator, x)


def _checksum(x: Array, number: int) -> UInt32[Array, ""]:
    """A sum that depends on each number's bits and position, and on the array's own number.

    A plain sum of bits is the same for reordered numbers, and for an even number of other signs.
    """
    bits = _bits(x)
    return _mixed(bits, _positions(bits.shape, number)).sum(dtype=np.uint32)


def _positions(shape: tuple[int, ...], number: int) -> UInt32[Array, "..."]:
    """The position of each number in the array with this number."""
    position, stride = jnp.full(shape, number << 24, np.uint32), 1
    for axis in reversed(range(len(shape))):
        position = position + stride * lax.broadcasted_iota(np.uint32, shape, axis)
        stride = np.uint32(stride * shape[axis])
    return position


def _mixed(bits: UInt32[Array, "..."], position: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A number for each position and its bits."""
    # A multiplication between two shifts: each bit of the input changes many bits of the result.
    # A sign alone would change the highest bit, and an even number of those adds up to nothing.
    mixed = bits ^ position
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    return mixed ^ (mixed >> 15)


def _bits(x: Array) -> UInt32[Array, "..."]:
    """The bits of an array as 32-bit integers; for wider numbers, with an axis of their parts."""
    if x.dtype.itemsize >= 4:
        return lax.bitcast_convert_type(x, np.uint32)
    narrow = {1: np.uint8, 2: np.uint16}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, narrow).astype(np.uint32)
