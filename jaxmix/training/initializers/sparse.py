"""Initializes sparse updates and spectra at random positions, mostly with zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.families import C3A, FourierFT, SHiRA, SuperTuning, Update, WaveFT
from jaxmix.families.wavelets import WAVELETS
from jaxmix.training.draws import kaiming, normal, uniform
from jaxmix.training.initializers.checks import check_choice, check_positive
from jaxmix.training.initializers.initializer import Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def shira(key: Any, target: Target, *, rank: int = 32) -> Update:
    """SHiRA: zeros at r·(in + out) random positions, sorted by rows."""
    count = rank * (target.inputs + target.outputs)
    if rank < 1 or count > target.inputs * target.outputs:
        raise ShapeError(
            f"rank is {rank}, which gives {count} entries, expected a rank of at least 1 and at "
            f"most {target.inputs * target.outputs} entries"
        )
    return SHiRA(jnp.zeros(count, target.dtype), _positions(key, target, count, True), rank)


def _positions(key: Any, target: Target, count: int, in_order: bool = False) -> jax.Array:
    """Draws the rows and columns (2, n) of distinct positions."""
    size = target.inputs * target.outputs
    if size > np.iinfo(np.int32).max:
        raise UnsupportedError(f"the weight has {size} entries, expected fewer than 2³¹")
    drawn = jax.random.permutation(key, jnp.arange(size, dtype=np.int32))[:count]
    drawn = jnp.sort(drawn) if in_order else drawn
    return jnp.stack([drawn // target.inputs, drawn % target.inputs])


def _check_count(target: Target, count: int) -> None:
    """Checks that a weight has at least this number of entries."""
    if not 1 <= count <= target.inputs * target.outputs:
        raise ShapeError(
            f"n_frequency is {count}, expected from 1 to {target.inputs * target.outputs}"
        )


def fourierft(
    key: Any,
    target: Target,
    *,
    n_frequency: int = 1000,
    scaling: float = 150.0,
    init_weights: bool = False,
) -> Update:
    """FourierFT: normal values as in PEFT, or zeros (no change) with ``init_weights``."""
    _check_count(target, n_frequency)
    position_key, value_key = jax.random.split(key)
    zeros = jnp.zeros(n_frequency, target.dtype)
    return FourierFT(
        zeros if init_weights else normal(value_key, (n_frequency,), target.dtype),
        _positions(position_key, target, n_frequency),
        float(scaling),
        transposed=target.is_transposed,
    )


def waveft(
    key: Any,
    target: Target,
    *,
    n_frequency: int = 2592,
    scaling: float = 25.0,
    wavelet_family: str = "db1",
    use_idwt: bool = True,
) -> Update:
    """WaveFT: zeros."""
    _check_count(target, n_frequency)
    check_choice("wavelet_family", wavelet_family, WAVELETS)
    return WaveFT(
        jnp.zeros(n_frequency, target.dtype),
        _positions(key, target, n_frequency),
        float(scaling),
        wavelet_family if use_idwt else None,
        transposed=target.is_transposed,
    )


def c3a(
    key: Any,
    target: Target,
    *,
    block_size: int = 256,
    init_weights: bool | str = "xavier_uniform",
) -> Update:
    """C3A: uniform values as in PEFT, or zeros (no change) with ``init_weights=True``."""
    b, (out_size, in_size) = block_size, target.shape
    if b < 1 or out_size % b or in_size % b:
        raise ShapeError(f"block_size is {b}, expected a divisor of {out_size} and {in_size}")
    shape, dtype = (out_size // b, in_size // b, b), target.dtype
    if init_weights is True:
        return C3A(jnp.zeros(shape, dtype))
    if init_weights == "gaussian":
        return C3A(normal(key, shape, dtype))
    bounds = {"xavier_uniform": (6 / (in_size + out_size)) ** 0.5, "kaiming_uniform": in_size**-0.5}
    check_choice("init_weights", init_weights, (True, "gaussian", *bounds))
    return C3A(uniform(key, shape, dtype, bounds[str(init_weights)]))


def supertuning(
    key: Any,
    target: Target,
    *,
    sparsity: float = 0.99,
    select_top: bool = True,
    rank: int | None = None,
    alpha: float | None = None,
) -> Update:
    """SuperTuning: zeros where the base is largest or smallest; with a rank also a LoRA, B zero."""
    scores = jnp.abs(target.matrix).reshape(-1)
    count = int(scores.size * (1 - sparsity))
    if not 1 <= count <= scores.size:
        raise ShapeError(
            f"sparsity is {sparsity}, which leaves {count} of {scores.size} entries, expected at "
            "least 1"
        )
    positions = jax.lax.top_k(scores if select_top else -scores, count)[1]
    values = jnp.zeros(count, target.dtype)
    if rank is None:
        return SuperTuning(values, positions, sparsity=sparsity)
    check_positive(rank=rank)
    return SuperTuning(
        values,
        positions,
        (2 * rank if alpha is None else alpha) / rank,
        kaiming(key, (rank, target.inputs), target.dtype),
        jnp.zeros((target.outputs, rank), target.dtype),
        sparsity,
    )


KINDS = {
    "shira": Initializer(shira, ("linear",)),
    "fourierft": Initializer(fourierft),
    "waveft": Initializer(waveft),
    "c3a": Initializer(c3a, ("linear",)),
    "supertuning": Initializer(supertuning, ("linear",)),
}
