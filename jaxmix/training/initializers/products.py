"""Initializes LoHa and LoKr: one factor zero, all others uniform."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmix.errors import UnsupportedError
from jaxmix.families import LoHa, LoKr, Update
from jaxmix.training.draws import kaiming
from jaxmix.training.initializers.checks import check_choice, scale_of
from jaxmix.training.initializers.initializer import Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def loha(
    key: Any,
    target: Target,
    *,
    rank: int = 8,
    alpha: float = 8,
    use_effective_conv2d: bool = False,
) -> Update:
    """LoHa: ``hada_w2_b`` is zero."""
    keys, dtype = jax.random.split(key, 5), target.dtype
    scale, kernel = scale_of(rank, alpha), _kernel(target)
    if not use_effective_conv2d or not _has_core(kernel):
        b, a = (target.outputs, rank), (rank, target.inputs)
        b1, a1, b2 = (kaiming(keys[i], s, dtype) for i, s in enumerate((b, a, b)))
        return LoHa(b1, a1, b2, jnp.zeros(a, dtype), scale)
    b, a = (rank, target.outputs), (rank, target.shape[1])
    # PEFT adds an axis of length one to the core of a Conv1d.
    core = (rank, rank, *kernel) if len(kernel) == 2 else (rank, rank, *kernel, 1)
    shapes = (b, a, b, core, core)
    b1, a1, b2, t1, t2 = (kaiming(k, s, dtype) for k, s in zip(keys, shapes, strict=True))
    return LoHa(b1, a1, b2, jnp.zeros(a, dtype), scale, t1, t2, core[2:])


def lokr(
    key: Any,
    target: Target,
    *,
    rank: int = 8,
    alpha: float = 8,
    use_effective_conv2d: bool = False,
    decompose_both: bool = False,
    decompose_factor: int = -1,
    init_weights: Literal[True, "lycoris"] = True,
) -> Update:
    """LoKr: ``lokr_w1`` is zero, or ``lokr_w2`` as in LyCORIS; of a pair, one factor is zero."""
    scale, kernel, keys = scale_of(rank, alpha), _kernel(target), jax.random.split(key, 5)
    k, n = target.outputs, target.shape[1]
    (rows, k), (cols, n) = factorization(k, decompose_factor), factorization(n, decompose_factor)
    check_choice("init_weights", init_weights, (True, "lycoris"))
    first_is_zero, dtype = init_weights is True, target.dtype

    def draw(shapes: tuple[tuple[int, ...], ...], zero: int | None, start: int) -> tuple[Any, ...]:
        return tuple(
            jnp.zeros(shape, dtype) if i == zero else kaiming(keys[start + i], shape, dtype)
            for i, shape in enumerate(shapes)
        )

    is_pair = decompose_both and rank < max(rows, cols) / 2
    x = draw(
        ((rows, rank), (rank, cols)) if is_pair else ((rows, cols),),
        0 if first_is_zero else None,
        0,
    )
    points = 1
    for size in kernel:
        points *= size
    full, core = ((k, n, *kernel),), None
    if rank >= max(k, n) / 2:
        return LoKr(x, draw(full, None if first_is_zero else 0, 2), scale)
    if use_effective_conv2d and _has_core(kernel):
        core_shape = (rank, rank, *kernel) if len(kernel) == 2 else (rank, rank, *kernel, 1)
        core = kaiming(keys[4], core_shape, dtype)
        pair = ((rank, k), (rank, n))
    else:
        pair = ((k, rank), (rank, n * points))
    return LoKr(x, draw(pair, None if first_is_zero else 1, 2), scale, core)


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """Factorizes a size into two numbers as LyCORIS and PEFT do.

    Args:
        size: The size.
        factor: The first number, if it divides the size. Otherwise the two numbers are as close to
            each other as possible, with the smaller at most `factor`; -1 for no limit.

    Returns:
        The two numbers, the smaller one first unless `factor` divides the size.

    Example:
        >>> factorization(128), factorization(127), factorization(128, 4)
        ((8, 16), (1, 127), (4, 32))

    Source: https://arxiv.org/abs/2309.14859; ``peft/tuners/lokr/layer.py``, ``factorization``.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    best, total = (1, size), size + 1
    for first in range(2, size + 1):
        if size % first:
            continue
        second = size // first
        if first + second > total or first > limit or best[0] >= best[1]:
            break
        best, total = (first, second), first + second
    return min(best), max(best)


def _kernel(target: Target) -> tuple[int, ...]:
    """Returns a convolution's kernel, of one or two axes."""
    if len(target.kernel) > 2:
        raise UnsupportedError("PEFT supports only convolutions of one or two axes")
    return target.kernel


def _has_core(kernel: tuple[int, ...]) -> bool:
    """Whether a kernel has more than one point."""
    return any(size != 1 for size in kernel)


_LAYERS = ("linear", "convolution")

KINDS = {"loha": Initializer(loha, _LAYERS), "lokr": Initializer(lokr, _LAYERS)}
