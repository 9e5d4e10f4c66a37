"""Applies a chain of updates to one leaf: folds them into steps, and runs passes over the weight.

On an accelerator, or under an outer trace, everything is one function, and XLA fuses it. On CPU,
XLA would fuse terms of different kinds into one slow loop. There the computation of a chain's maps
is a compiled function, and so is each pass over the weight, which reuses the buffer of the previous
one: a rotation, one term, or several terms slab by slab (`passes`). Only `_runs_by_pass` makes this
choice. Compiled functions depend on structure, shapes and dtypes only: layers of one shape
share them, and new strengths or factors do not re-trace.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.affine import AffineMap, Base, fold
from jaxmix.apply import accelerated
from jaxmix.apply.decomposing import decomposed, is_on_cpu
from jaxmix.apply.passes import add, in_matrix, multiply, run
from jaxmix.families import Update
from jaxmix.families.base import Chain, maps
from jaxmix.operators import Hadamard
from jaxmix.operators.backends import Backend, by_platform
from jaxmix.operators.lowrank import KHATRI_RAO_RANK
from jaxmix.operators.sharded import matrix_sharding
from jaxmix.placement.form import At, Form, arithmetic, as_matrix

__all__ = ["apply", "arithmetic", "as_matrix", "cast", "compiled_maps", "run"]


def cast(tree: Any, dtype: Any) -> Any:
    """Casts the floats of a pytree to a dtype and leaves integers unchanged."""

    def cast_array(x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast_array, tree)


def apply(
    leaf: Array,
    chain: Chain,
    form: Form,
    *,
    base: Any = None,
    base_form: Form | None = None,
    donate: bool = False,
) -> Array:
    """Applies a chain of updates to one leaf: ``W ↦ L W Rᵀ + Δ``, with the maps folded.

    Args:
        leaf: The leaf, of any float dtype.
        chain: Strengths and updates of one site, in order of application.
        form: How the leaf holds the site's tensor.
        base: The base's weight leaf, for maps of a bias that read it; otherwise None.
        base_form: How that leaf holds its tensor.
        donate: Whether to reuse the leaf's buffer for the result.

    Returns:
        The new leaf, of the same shape, dtype and sharding.
    """
    dtype = arithmetic(leaf.dtype)
    chain = tuple((_strength(strength, dtype), update) for strength, update in chain)
    form, at = form.split_index()
    if not _runs_by_pass(leaf):
        weight = leaf if form.part == "weight" else base
        chain = decomposed(
            chain, weight, lambda: _base(leaf, base, form, base_form, at).read("matrix")
        )
        return (_fused_in_place if donate else _fused)(leaf, base, chain, form, base_form, at)
    return _by_pass(leaf, base, chain, form, base_form, at, donate)


def _runs_by_pass(leaf: Array) -> bool:
    """Whether each pass is compiled separately (see above) instead of all together."""
    # On several devices it is one program; separate results would be whole on one device.
    if isinstance(leaf, Tracer) or len(leaf.devices()) > 1:
        return False
    return is_on_cpu(leaf)


def _strength(strength: Any, dtype: Any) -> Any:
    """A strength as an array of the arithmetic's dtype, so that floats and arrays trace alike."""
    if isinstance(strength, jax.Array):
        return strength.astype(dtype)
    return np.asarray(strength, dtype)


# ---------------------------------------------------------------- everything as one function


def _all(leaf: Array, base: Any, chain: Chain, form: Form, base_form: Form | None, at: At) -> Array:
    """The leaf with the chain applied."""
    tensor = form.tensor(leaf, at)
    with jax.default_matmul_precision("highest"):
        start = _base(leaf, base, form, base_form, at)
        tensor_maps = [
            form.tensor_map(update_map)
            for update_map in maps(cast(chain, arithmetic(leaf.dtype)), start, form.part)
        ]
        now = by_platform(
            partial(_on_cpu, form), partial(_on_accelerator, form), tensor, tensor_maps
        )
    out = form.updated_leaf(leaf, now, at)
    return out if form.sharding is None else lax.with_sharding_constraint(out, form.sharding)


def _on_cpu(form: Form, tensor: Array, tensor_maps: Sequence[AffineMap]) -> Array:
    """The tensor with the maps applied, by the passes that suit a CPU."""
    now = tensor.astype(arithmetic(tensor.dtype))
    for step in fold([_thrifty(tensor_map) for tensor_map in tensor_maps]):
        if not step.is_shift:
            now = in_matrix(multiply, now, (step.left, step.right), form, now.dtype)
        now = in_matrix(add, now, step.shift, form, now.dtype)
    return now.astype(tensor.dtype)


def _on_accelerator(
    form: Form, backend: Backend, tensor: Array, tensor_maps: Sequence[AffineMap]
) -> Array:
    """The tensor with the maps applied, as few passes."""
    leaf_sharding = form.sharding if form.is_plain else None
    matrix, sharding = as_matrix(tensor, form.part), matrix_sharding(leaf_sharding, tensor.shape)
    is_whole = form.sharding is None and jax.typeof(tensor).sharding.mesh.empty
    out = accelerated.run(backend, matrix, fold(tensor_maps), sharding, is_whole=is_whole)
    out = out.reshape(tensor.shape)
    return out if leaf_sharding is None else lax.with_sharding_constraint(out, leaf_sharding)


_fused = jax.jit(_all, static_argnames=("form", "base_form"))
_fused_in_place = jax.jit(_all, static_argnames=("form", "base_form"), donate_argnames="leaf")


# ---------------------------------------------------------------- pass by pass


def _by_pass(
    leaf: Array,
    base: Any,
    chain: Chain,
    form: Form,
    base_form: Form | None,
    at: At,
    donate: bool,
) -> Array:
    """The same with one compiled function for the maps and one for each pass."""
    if any(update.reads_base for _, update in chain):
        steps = fold(list(_compiled_maps(leaf, base, chain, form, base_form, at)))
    else:
        steps = _steps(chain, form.shape(leaf.shape), form.bare, arithmetic(leaf.dtype))
    if not steps:
        return leaf
    if form.is_plain:
        return run(leaf, steps, form, leaf.dtype, donate=donate)
    tensor = run(_enter(leaf, at, form), steps, form, leaf.dtype, donate=True)
    return (_leave_in_place if donate else _leave)(leaf, tensor, at, form)


def compiled_maps(
    leaf: Any, base: Any, chain: Chain, form: Form, base_form: Form | None = None
) -> Iterator[AffineMap]:
    """Computes a chain's maps, one compiled function each. An unread leaf may be its shape."""
    form, at = form.split_index()
    return _compiled_maps(leaf, base, chain, form, base_form, at)


def _compiled_maps(
    leaf: Any, base: Any, chain: Chain, form: Form, base_form: Form | None, at: At
) -> Iterator[AffineMap]:
    """The maps of a chain, for a form without numbers in its index."""
    shape = form.shape(leaf.shape)
    dtype = arithmetic(leaf.dtype)
    bare = start = Base(None, shape)
    if any(update.reads_base for _, update in chain):
        start = _read(leaf, base, form, base_form, at)
        bare = Base(None, start.shape)
    for strength, update in chain:
        visible = start if update.reads_base or update.is_base_side else bare
        yield _map(update, _strength(strength, dtype), visible, form.bare, dtype)
        if update.is_base_side and start is not bare:
            start = _rebase(update, _strength(strength, dtype), start, dtype)


def _folded(chain: Chain, shape: tuple[int, int], form: Form, dtype: Any) -> tuple[AffineMap, ...]:
    """The folded maps of a chain that does not read the base."""
    base = Base(None, shape)
    return fold([_one_map(update, strength, base, form, dtype) for strength, update in chain])


def _one_map(update: Update, strength: Any, base: Base, form: Form, dtype: Any) -> AffineMap:
    """One update's map of the matrix as the leaf holds it."""
    with jax.default_matmul_precision("highest"):
        (update_map,) = maps([cast((strength, update), dtype)], base, form.part)
        return form.tensor_map(_thrifty(update_map))


def _rebased(update: Update, strength: Any, base: Base, dtype: Any) -> Base:
    """The base as read by updates after one that changes the base itself."""
    strength, update = cast((strength, update), dtype)
    return update.rebased(base, strength)


# ---------------------------------------------------------------- used by both


def _base(leaf: Array, base: Any, form: Form, base_form: Form | None, at: At) -> Base:
    """The base's leaves at the site as matrices; the weight is separate for maps of a bias."""
    own = cast(form.matrix(leaf, at), arithmetic(leaf.dtype))
    if form.part == "weight":
        stored = leaf.dtype if form.is_plain and form.scale == 1 else None
        return Base(own, own.shape, stored=stored, is_transposed=form.transposed)
    if base is None or base_form is None:
        return Base(None, (own.shape[0], 1), own)
    matrix = cast(base_form.matrix(base), own.dtype)
    return Base(matrix, matrix.shape, own)


def _thrifty(tensor_map: AffineMap) -> AffineMap:
    """The map with Δ in the structure that is cheapest to add to a dense weight."""
    delta = tensor_map.shift
    if isinstance(delta, Hadamard) and delta.left.rank * delta.right.rank <= KHATRI_RAO_RANK:
        return AffineMap(tensor_map.left, tensor_map.right, delta.low_rank())
    return tensor_map


_steps = jax.jit(_folded, static_argnames=("shape", "form", "dtype"))
_map = jax.jit(_one_map, static_argnames=("form", "dtype"))
_rebase = jax.jit(_rebased, static_argnames="dtype")
_read = jax.jit(_base, static_argnames=("form", "base_form"))
_enter = jax.jit(lambda leaf, at, form: form.tensor(leaf, at), static_argnames="form")


def _left(leaf: Array, tensor: Array, at: At, form: Form) -> Array:
    return form.updated_leaf(leaf, tensor, at)


_leave = jax.jit(_left, static_argnames="form")
_leave_in_place = jax.jit(_left, static_argnames="form", donate_argnames="leaf")
