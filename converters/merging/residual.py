"""A merged tensor held against base plus mix in float64: the maps one by one, not folded.

It shares with the merge the families and operators, and nothing of how they are run: neither the
folding, nor the passes, nor the runs of rows and threads, nor the arithmetic's width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmix.affine import AffineMap, Base
from jaxmix.apply import plan
from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.merging import blocks
from jaxmix.converters.merging.files import read_rows
from jaxmix.converters.merging.recipe import Recipe, Share
from jaxmix.families.base import maps
from jaxmix.placement.form import Form

__all__ = ["Residual", "residual"]

# The numbers of a run of rows: in float64 4 MB, of which a handful are in memory at once.
_BLOCK = 1 << 19
# What arithmetic of float32 may be off, in units of its precision and of a row's largest number.
_SLACK = 128
# What is said of a number that is none; a finite one, so that it is JSON too.
_FAR = 1e30
_EXPONENTS = {"float64": -1022, "float32": -126, "bfloat16": -126, "float16": -14}


@dataclass(frozen=True)
class Residual:
    """What is left of a merged tensor when base and mix are taken off.

    Args:
        worst: the largest ``|out − (base + d)|``, over half a unit in the last place and what the
            merge's own arithmetic may be off. Up to 1 the rounding explains it.
        kept: ``⟨out − base, d⟩ / ⟨d, d⟩``, the part of the mix's effect d that the rounding left:
            near 1 as a rule, and 0 if it hid it. None where the mix does nothing.
    """

    worst: float
    kept: float | None


def residual(recipe: Recipe, out: Callable[[slice], np.ndarray]) -> Residual:
    """Holds a merged tensor against base plus mix.

    Args:
        recipe: how it was made.
        out: from a run of rows to the merged ones.

    Returns:
        What is left.
    """
    worst, along, square = 0.0, 0.0, 0.0
    if not recipe.tensor.size:
        return Residual(worst, None)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for rows, exact, base in _exact(recipe):
            far, *sums = _compared(jnp.asarray(out(rows)), exact, base, recipe.dtype)
            worst = max(worst, min(_FAR, float(far)))
            along, square = along + float(sums[0]), square + float(sums[1])
    return Residual(worst, along / square if square else None)


@partial(jax.jit, static_argnames="dtype")
def _compared(found: Any, exact: Any, base: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """The largest distance over what is allowed; ``⟨out − base, d⟩``; ``⟨d, d⟩``."""
    # A bias is one row, and a convolution's kernel lies within one.
    rows = base.shape[0] if base.ndim > 1 else 1
    found, exact, base = (x.astype(base.dtype).reshape(rows, -1) for x in (found, exact, base))
    effect = exact - base
    told = ml_dtypes.finfo(dtype)
    _, exponent = jnp.frexp(jnp.maximum(jnp.abs(found), jnp.abs(exact)))
    lowest = jnp.asarray(_EXPONENTS[str(dtype)], exponent.dtype)
    unit = jnp.ldexp(jnp.ones_like(exact), jnp.maximum(exponent - 1, lowest) - told.nmant)
    none = jnp.zeros_like(exact)
    sizes = (jnp.where(jnp.isfinite(x), jnp.abs(x), none) for x in (base, effect))
    scale = sum(jnp.max(x, axis=1, keepdims=True) for x in sizes)
    slack = _SLACK * float(np.finfo(plan.arithmetic(dtype)).eps) * scale
    off = jnp.abs(found - exact)
    # Where base plus mix is no number, none is expected.
    both = jnp.isfinite(found) & jnp.isfinite(exact)
    one = jnp.isfinite(found) ^ jnp.isfinite(exact)
    far = jnp.where(both & (off > 0), off / (unit / 2 + slack), none)
    far = jnp.max(jnp.where(one, jnp.full_like(off, jnp.inf), far), initial=0.0)
    change, effect = jnp.where(both, found - base, none), jnp.where(both, effect, none)
    return far, jnp.vdot(change, effect), jnp.vdot(effect, effect)


def _exact(recipe: Recipe) -> Iterator[tuple[slice, Any, Any]]:
    """Runs of rows: base plus mix in float64, and the base."""
    tensor = recipe.tensor
    rows = tensor.shape[0] if tensor.shape else 1
    if not recipe.is_plain:
        whole = slice(0, rows)
        base = now = _wide(tensor, whole)
        for share in recipe.shares:
            now = _through(share, now)
        yield whole, now, base
        return
    made: list[AffineMap] = []
    for share in recipe.shares:
        start = _wide(tensor, slice(0, rows)) if _reads(share) else None
        made = _maps(share, start, tensor.shape)
        del start
    width = max(1, math.prod(tensor.shape[1:]))
    for part in blocks.parts(rows, max(1, _BLOCK // width), blocks.unit(made)):
        base = _wide(tensor, part)
        now = base.reshape(base.shape[0], -1)
        for one in blocks.cut(made, part):
            now = _applied(one, now)
        yield part, now, base


def _through(share: Share, leaf: Any) -> Any:
    """A tensor of which a site has a part, with its maps in it."""
    tensor = share.form.tensor(leaf)
    matrix = share.form.matrix(leaf)
    for one in _maps(share, leaf, leaf.shape):
        # `_maps` has them as the tensor lies; here the matrix is PyTorch's.
        matrix = _applied(one.T if share.form.transposed else one, matrix)
    new = matrix.T if share.form.transposed else matrix
    return share.form.back(leaf, new.reshape(tensor.shape))


def _maps(share: Share, leaf: Any, shape: tuple[int, ...]) -> list[AffineMap]:
    """A site's maps in float64, one for each update, as the tensor holds its matrix."""
    form, own, weight = share.form, None, None
    if _reads(share):
        own = form.matrix(leaf)
        if form.part == "bias" and share.base is not None and share.base_form is not None:
            rows = share.base.shape[0] if share.base.shape else 1
            weight = share.base_form.matrix(_wide(share.base, slice(0, rows)))
    return _made(share.word, own, weight, form, form.shape(shape))


@partial(jax.jit, static_argnames=("form", "shape"))
def _made(word: Any, own: Any, weight: Any, form: Form, shape: Any) -> list[AffineMap]:
    """The maps of a word; of a bias's weight only where a map reads it."""
    base = Base(own, shape) if form.part == "weight" else Base(weight, shape, own)
    if weight is not None:
        base = Base(weight, weight.shape, own)
    made = maps(plan.cast(word, np.float64), base, form.part)
    return [one.T if form.transposed else one for one in made]


@jax.jit
def _applied(one: AffineMap, matrix: Any) -> Any:
    """``L W Rᵀ + Δ``."""
    return one(matrix)


def _reads(share: Share) -> bool:
    """Whether a map reads the base."""
    return any(update.reads_base for _, update in share.word)


def _wide(tensor: Stored, rows: slice) -> Any:
    """Rows in float64."""
    return jnp.asarray(read_rows(tensor, rows)).astype(np.float64)
