"""How a word of updates is applied to one leaf: folded into steps, and in which passes these run.

On an accelerator, or under an outer trace, everything is one function and XLA fuses it. On CPU XLA
fuses terms of different kinds into one slow loop, so there every pass over the weight (a rotation, a
low-rank product, …) is a compiled function of its own, which takes the buffer of the one before. The
choice is `_runs_by_pass`, and nowhere else. Compiled functions depend on structure, shapes and
dtypes alone: layers of one shape share them, and new strengths or factors do not re-trace.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, fold
from jaxmix.families import Update
from jaxmix.families.base import maps
from jaxmix.layout import Part, Place
from jaxmix.operators import Operator, Sum, Zero

__all__ = ["Form", "Word", "apply"]

# What acts on one site: strengths and updates, the first one first.
Word = tuple[tuple[Any, Update], ...]


@dataclass(frozen=True)
class Form:
    """How a leaf holds a site's tensor: what a compiled function needs to know beside the shapes.

    Args:
        part: whether it is the site's weight or its bias.
        axes: the rule's einops pattern, from leaf to PyTorch's tensor; None for none.
        index: the rule's index into the leaf; None for the whole.
        transposed: whether the tensor, of two axes, is (in, out) and not (out, in).
        sharding: the leaf's sharding over devices, which the result keeps; None for one device.
    """

    part: Part = "weight"
    axes: str | None = None
    index: str | None = None
    transposed: bool = False
    sharding: jax.sharding.NamedSharding | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the leaf is a matrix, or its transpose, but for a reshape."""
        return self.axes is None and self.index is None

    @property
    def _place(self) -> Place:
        return Place("", self.axes, self.index)

    def tensor(self, leaf: Array) -> Array:
        """The leaf's tensor for the passes: itself if it is plain, else PyTorch's."""
        return leaf if self.is_plain else self._place.get(leaf)

    def back(self, leaf: Array, tensor: Array) -> Array:
        """The leaf with its tensor exchanged."""
        return tensor if self.is_plain else self._place.put(leaf, tensor)

    def matrix(self, leaf: Array) -> Float[Array, "out in"]:
        """The leaf as the matrix on which updates act: (out, in), a bias (out, 1)."""
        tensor = as_matrix(self.tensor(leaf), self.part)
        return tensor.T if self.transposed else tensor


def arithmetic(dtype: Any) -> np.dtype:
    """The dtype of the arithmetic for weights of a dtype: float32 at the least."""
    return np.promote_types(dtype, np.float32)


def as_matrix(tensor: Array, part: Part) -> Float[Array, "rows cols"]:
    """A tensor as a matrix: all axes but the first are one; a bias is a column."""
    return tensor.reshape(-1, 1) if part == "bias" else tensor.reshape(tensor.shape[0], -1)


def apply(
    leaf: Array,
    word: Word,
    form: Form,
    *,
    base: Any = None,
    base_form: Form | None = None,
    donate: bool = False,
) -> Array:
    """A word of updates applied to one leaf: ``W ↦ L W Rᵀ + Δ``, the word's maps folded.

    Args:
        leaf: the leaf, of any float dtype.
        word: strengths and updates of one site, the first one first.
        form: how the leaf holds the site's tensor.
        base: the base's weight leaf, for the map of a bias that reads it; None for none.
        base_form: how that one holds its tensor.
        donate: whether the leaf's buffer may be used for the result.

    Returns:
        The new leaf, of the same shape, dtype and sharding.
    """
    dtype = arithmetic(leaf.dtype)
    word = tuple((_strength(strength, dtype), update) for strength, update in word)
    if not _runs_by_pass(leaf):
        run = _fused_in_place if donate else _fused
        return run(leaf, word, base, form, base_form)
    own = leaf if any(update.reads_base for _, update in word) else None
    steps = _steps(own, base, word, form, base_form, jax.typeof(leaf))
    passes = list(_passes(steps))
    if not passes:
        return leaf
    now, ours = leaf, donate
    if not form.is_plain:
        now, ours = _enter(leaf, form), True
    for i, (kind, operators) in enumerate(passes):
        last = leaf.dtype if i + 1 == len(passes) else dtype
        in_place = ours and now.dtype == last
        now, ours = _PASSES[kind, in_place](now, operators, form, last), True
    return now if form.is_plain else _leave(leaf, now, form)


def _runs_by_pass(leaf: Array) -> bool:
    """Whether each pass is compiled alone (see above), or all of them together."""
    if isinstance(leaf, jax.core.Tracer):
        return False
    return all(device.platform == "cpu" for device in leaf.devices())


def _strength(strength: Any, dtype: Any) -> Any:
    """A strength as an array of the arithmetic's dtype, so that a float and an array trace alike."""
    if isinstance(strength, jax.Array):
        return strength.astype(dtype)
    return np.asarray(strength, dtype)


def _folded(
    leaf: Any, base: Any, word: Word, form: Form, base_form: Form | None, like: Any
) -> tuple[AffineMap, ...]:
    """The word's maps, folded, of the matrix that the leaf holds (transposed where it lies so)."""
    dtype = arithmetic(like.dtype)

    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    shape = jax.eval_shape(form.matrix, like).shape
    own = None if leaf is None else cast(form.matrix(leaf))
    if form.part == "weight":
        start = Base(own, shape)
    else:
        matrix = None if base is None or base_form is None else cast(base_form.matrix(base))
        start = Base(matrix, (shape[0], 1) if matrix is None else matrix.shape, own)
    steps = fold(maps(jax.tree.map(cast, word), start, form.part))
    return tuple(step.T for step in steps) if form.transposed else steps


def _passes(steps: tuple[AffineMap, ...]) -> Iterator[tuple[str, Any]]:
    """The passes over the weight that steps take, in order."""
    for step in steps:
        if not step.is_shift:
            yield "turn", (step.left, step.right)
        for term in step.shift.terms if isinstance(step.shift, Sum) else (step.shift,):
            if not isinstance(term, Zero):
                yield "add", term


def _in_matrix(
    work: Callable[[Any, Any], Any], tensor: Array, operators: Any, form: Form, dtype: Any
) -> Array:
    """A pass over a tensor, done on its matrix in float32 at the least."""
    with jax.default_matmul_precision("highest"):
        matrix = work(as_matrix(tensor, form.part).astype(arithmetic(tensor.dtype)), operators)
    out = matrix.reshape(tensor.shape).astype(dtype)
    if form.sharding is None or not form.is_plain:
        return out
    return jax.lax.with_sharding_constraint(out, form.sharding)


def _turn(w: Float[Array, "out in"], operators: tuple[Operator, Operator]) -> Array:
    """``L W Rᵀ``."""
    left, right = operators
    return (right @ (left @ w).T).T


def _add(w: Float[Array, "out in"], term: Operator) -> Array:
    """``W + Δ``, for one term."""
    return term.added_to(w)


def _all(
    leaf: Array, word: Word, base: Any, form: Form, base_form: Form | None
) -> Array:
    """Everything as one function."""
    with jax.default_matmul_precision("highest"):
        steps = _folded(leaf, base, word, form, base_form, leaf)
    tensor = form.tensor(leaf)
    now = tensor.astype(arithmetic(leaf.dtype))
    for kind, operators in _passes(steps):
        now = _in_matrix({"turn": _turn, "add": _add}[kind], now, operators, form, now.dtype)
    return form.back(leaf, now.astype(leaf.dtype))


_fused = jax.jit(_all, static_argnames=("form", "base_form"))
_fused_in_place = jax.jit(_all, static_argnames=("form", "base_form"), donate_argnames="leaf")
_steps = jax.jit(_folded, static_argnames=("form", "base_form", "like"))
_enter = jax.jit(lambda leaf, form: form.tensor(leaf), static_argnames="form")
_leave = jax.jit(lambda leaf, tensor, form: form.back(leaf, tensor), static_argnames="form")
_PASSES = {
    (kind, in_place): jax.jit(
        partial(_in_matrix, work),
        static_argnames=("form", "dtype"),
        donate_argnames=("tensor",) if in_place else (),
    )
    for kind, work in (("turn", _turn), ("add", _add))
    for in_place in (False, True)
}
