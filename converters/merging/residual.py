"""Compares a merged tensor with base plus mix in float64, applying the maps one by one.

The families and operators are those of the merge. Everything else is independent of it: the maps
are not folded or scheduled into passes, and the runs of rows, threads and dtype differ.
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
from jaxmix.converters.merging.recipe import Recipe, Share
from jaxmix.converters.merging.tensor_io import read_rows
from jaxmix.families.base import maps
from jaxmix.placement.form import Form
from jaxmix.row_cuts import cut_rows, row_unit

__all__ = ["Residual", "measure_residual"]

# The elements in a run of rows: 4 MB in float64; several runs are in memory at once.
_BLOCK = 1 << 19
# The allowed error of float32 arithmetic, in units of its precision and a row's largest number.
_SLACK = 128
# Reported for NaN and infinite numbers; finite, so JSON can hold it.
_FARTHEST = 1e30
_EXPONENTS = {"float64": -1022, "float32": -126, "bfloat16": -126, "float16": -14}


@dataclass(frozen=True)
class Residual:
    """The difference between a merged tensor and base plus mix.

    Args:
        worst: The largest ``|out − (base + d)|``, divided by half a unit in the last place plus the
            allowed error of the merge's arithmetic. Values up to 1 are explained by rounding.
        kept: ``⟨out − base, d⟩ / ⟨d, d⟩``, the share of the mix's effect d that rounding left:
            usually near 1, and 0 if rounding hid the effect. None if the mix has no effect.
    """

    worst: float
    kept: float | None


def measure_residual(recipe: Recipe, out: Callable[[slice], np.ndarray]) -> Residual:
    """Compares a merged tensor with base plus mix.

    Args:
        recipe: How the tensor was computed.
        out: Returns the merged rows of a run.

    Returns:
        The difference.
    """
    worst, along, square = 0.0, 0.0, 0.0
    if not recipe.tensor.size:
        return Residual(worst, None)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for rows, exact, base in _exact(recipe):
            distance, *sums = _compare(jnp.asarray(out(rows)), exact, base, recipe.dtype)
            worst = max(worst, min(_FARTHEST, float(distance)))
            along, square = along + float(sums[0]), square + float(sums[1])
    return Residual(worst, along / square if square else None)


@partial(jax.jit, static_argnames="dtype")
def _compare(merged: Any, exact: Any, base: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """Returns the largest distance over the allowed one, ``⟨out − base, d⟩`` and ``⟨d, d⟩``."""
    # A bias is one row; a convolution has one row for each output channel.
    rows = base.shape[0] if base.ndim > 1 else 1
    merged, exact, base = (x.astype(base.dtype).reshape(rows, -1) for x in (merged, exact, base))
    effect = exact - base
    info = ml_dtypes.finfo(dtype)
    _, exponent = jnp.frexp(jnp.maximum(jnp.abs(merged), jnp.abs(exact)))
    lowest = jnp.asarray(_EXPONENTS[str(dtype)], exponent.dtype)
    unit = jnp.ldexp(jnp.ones_like(exact), jnp.maximum(exponent - 1, lowest) - info.nmant)
    zero = jnp.zeros_like(exact)
    sizes = (jnp.where(jnp.isfinite(x), jnp.abs(x), zero) for x in (base, effect))
    scale = sum(jnp.max(x, axis=1, keepdims=True) for x in sizes)
    slack = _SLACK * float(np.finfo(plan.arithmetic(dtype)).eps) * scale
    off = jnp.abs(merged - exact)
    # Where base plus mix is not finite, the merged number must not be finite either.
    both_finite = jnp.isfinite(merged) & jnp.isfinite(exact)
    one_finite = jnp.isfinite(merged) ^ jnp.isfinite(exact)
    distance = jnp.where(both_finite & (off > 0), off / (unit / 2 + slack), zero)
    distance = jnp.max(jnp.where(one_finite, jnp.full_like(off, jnp.inf), distance), initial=0.0)
    change = jnp.where(both_finite, merged - base, zero)
    effect = jnp.where(both_finite, effect, zero)
    return distance, jnp.vdot(change, effect), jnp.vdot(effect, effect)


def _exact(recipe: Recipe) -> Iterator[tuple[slice, Any, Any]]:
    """Yields runs of rows with base plus mix in float64, and the base."""
    recipe = recipe.settled(np.float64)
    tensor = recipe.tensor
    rows = tensor.shape[0] if tensor.shape else 1
    if not recipe.is_plain:
        all_rows = slice(0, rows)
        base = result = _wide(tensor, all_rows)
        for share in recipe.shares:
            result = _through(share, result)
        yield all_rows, result, base
        return
    steps: list[AffineMap] = []
    for share in recipe.shares:
        start = _wide(tensor, slice(0, rows)) if _reads(share) else None
        steps = _maps(share, start, tensor.shape)
        del start
    width = max(1, math.prod(tensor.shape[1:]))
    for part in blocks.row_runs(rows, max(1, _BLOCK // width), row_unit(steps)):
        base = _wide(tensor, part)
        result = base.reshape(base.shape[0], -1)
        for step in cut_rows(steps, part):
            result = _apply(step, result)
        yield part, result, base


def _through(share: Share, leaf: Any) -> Any:
    """Applies a site's maps to its part of a tensor."""
    tensor = share.form.tensor(leaf)
    matrix = share.form.matrix(leaf)
    for step in _maps(share, leaf, leaf.shape):
        # `_maps` returns them in the tensor's orientation; here the matrix has PyTorch's.
        matrix = _apply(step.T if share.form.transposed else step, matrix)
    new = matrix.T if share.form.transposed else matrix
    return share.form.updated_leaf(leaf, new.reshape(tensor.shape))


def _maps(share: Share, leaf: Any, shape: tuple[int, ...]) -> list[AffineMap]:
    """Returns a site's maps in float64, one for each update, in the tensor's orientation."""
    form, matrix, weight = share.form, None, None
    if _reads(share):
        matrix = form.matrix(leaf)
        if form.part == "bias" and share.base is not None and share.base_form is not None:
            rows = share.base.shape[0] if share.base.shape else 1
            weight = share.base_form.matrix(_wide(share.base, slice(0, rows)))
    return _build_maps(share.chain, matrix, weight, form, form.shape(shape))


@partial(jax.jit, static_argnames=("form", "shape"))
def _build_maps(chain: Any, matrix: Any, weight: Any, form: Form, shape: Any) -> list[AffineMap]:
    """Builds the maps; ``weight`` is given for a bias whose maps read the weight."""
    base = Base(matrix, shape) if form.part == "weight" else Base(weight, shape, matrix)
    if weight is not None:
        base = Base(weight, weight.shape, matrix)
    steps = maps(plan.cast(chain, np.float64), base, form.part)
    return [step.T if form.transposed else step for step in steps]


@jax.jit
def _apply(step: AffineMap, matrix: Any) -> Any:
    """Returns ``L W Rᵀ + Δ``."""
    return step(matrix)


def _reads(share: Share) -> bool:
    """Whether any update reads the base."""
    return any(update.reads_base for _, update in share.chain)


def _wide(tensor: Stored, rows: slice) -> Any:
    """Reads rows in float64."""
    return jnp.asarray(read_rows(tensor, rows)).astype(np.float64)
