"""Initializes rotations with angles of zero and rescalings with factors of one."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

from jaxmix.errors import AdapterError, ShapeError, UnsupportedError
from jaxmix.families import BOFT, HRA, IA3, OFT, PSOFT, RoAd, Update
from jaxmix.families.boft import butterfly
from jaxmix.training.draws import kaiming
from jaxmix.training.initializers.checks import check_choice, check_positive
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

_ROAD: dict[Any, Literal[1, 2, 4]] = {"road_1": 1, "road_2": 2, "road_4": 4}


def oft(
    key: Any,
    target: Target,
    *,
    rank: int = 0,
    oft_block_size: int | None = None,
    coft: bool = False,
    eps: float = 6e-5,
    block_share: bool = False,
    use_cayley_neumann: bool = True,
    num_cayley_neumann_terms: int = 5,
) -> Update:
    """OFT: angles of zero. Takes the number of blocks, ``rank``, or their size, by default 32."""
    del key  # nothing is random
    if oft_block_size is None:
        oft_block_size = 0 if rank else 32
    if (rank == 0) == (oft_block_size == 0):
        raise AdapterError(
            f"rank is {rank} and oft_block_size {oft_block_size}, expected exactly one of them to "
            "be 0"
        )
    size = target.inputs
    if rank:
        blocks = nearest_divisor(size, rank)
    else:
        blocks = size // nearest_divisor(size, oft_block_size)
    values = (size // blocks) * (size // blocks - 1) // 2
    return OFT(
        jnp.zeros((1 if block_share else blocks, values), target.dtype),
        terms=num_cayley_neumann_terms if use_cayley_neumann else None,
        eps=float(eps) if coft else None,
        embedding=target.layer == "embedding",
    )


def nearest_divisor(size: int, number: int) -> int:
    """Returns the divisor of a size that is nearest to a number, as PEFT adjusts block sizes.

    Args:
        size: The size.
        number: The number.

    Returns:
        The nearest divisor; the smaller one of two that are equally near.

    Example:
        >>> nearest_divisor(12, 5), nearest_divisor(12, 8), nearest_divisor(12, 99)
        (4, 6, 12)

    Source: ``peft/tuners/oft/layer.py``, ``adjust_oft_parameters``.
    """
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: (abs(d - number), d))


def boft(
    key: Any,
    target: Target,
    *,
    boft_block_size: int = 4,
    boft_block_num: int = 0,
    boft_n_butterfly_factor: int = 1,
) -> Update:
    """BOFT: angles of zero and factors of one."""
    del key
    if (boft_block_size == 0) == (boft_block_num == 0):
        raise AdapterError(
            f"boft_block_size is {boft_block_size} and boft_block_num {boft_block_num}, expected "
            "exactly one of them to be 0"
        )
    if len(target.kernel) not in (0, 2):
        raise UnsupportedError("PEFT supports only convolutions of two axes")
    factors, size = boft_n_butterfly_factor, target.inputs
    divisor = boft_block_size or boft_block_num
    if factors < 1 or size % divisor:
        raise ShapeError(
            f"the weight has {size} inputs and boft_n_butterfly_factor is {factors}, expected a "
            f"multiple of {divisor} inputs and at least 1 factor"
        )
    blocks = size // divisor if boft_block_size else boft_block_num
    b = size // blocks
    if factors > 1 and (b % 2 or blocks % 2 ** (factors - 1)):
        raise ShapeError(
            f"there are {blocks} blocks of size {b}, expected an even size and, for {factors} "
            f"factors, a multiple of {2 ** (factors - 1)} blocks"
        )
    orders: Any = butterfly(factors, blocks, b) if factors > 1 else None
    return BOFT(
        jnp.zeros((factors, blocks, b, b), target.dtype),
        jnp.ones(target.outputs, target.dtype),
        orders,
        convolution=bool(target.kernel),
    )


def hra(key: Any, target: Target, *, rank: int = 8, apply_GS: bool = False) -> Update:
    """HRA: pairs of equal reflections, which cancel; with an odd rank all are different."""
    check_positive(rank=rank)
    if rank % 2:
        return HRA(kaiming(key, (target.inputs, rank), target.dtype), apply_GS)
    half = kaiming(key, (target.inputs, rank // 2), target.dtype)
    return HRA(jnp.repeat(half, 2, axis=1), apply_GS)


def road(key: Any, target: Target, *, variant: str = "road_1", group_size: int = 64) -> Update:
    """RoAd: angles of zero and factors of one."""
    del key
    check_choice("variant", variant, _ROAD)
    if group_size < 2 or group_size % 2 or target.outputs % group_size:
        raise ShapeError(
            f"group_size is {group_size}, expected an even divisor of {target.outputs}"
        )
    count = target.outputs * _ROAD[variant] // 2
    zeros = jnp.zeros(count, target.dtype)
    return RoAd(zeros, jnp.ones(count, target.dtype), _ROAD[variant], group_size)


def ia3(key: Any, target: Target, *, feedforward_modules: str | Sequence[str] = ()) -> Update:
    """IA3: factors of one, for the inputs of ``feedforward_modules`` and the outputs of others."""
    del key
    if isinstance(feedforward_modules, str):
        on_input = re.fullmatch(feedforward_modules, target.site) is not None
    else:
        on_input = target.site.endswith(tuple(feedforward_modules))
    # A convolution's inputs are its channels.
    size = target.shape[1] if on_input else target.outputs
    ones = jnp.ones(size, target.dtype)
    return IA3(ones, on_input, len(target.kernel), target.is_transposed)


def psoft(
    key: Any,
    target: Target,
    *,
    rank: int = 32,
    alpha: float = 32,
    ab_svd_init: Literal["psoft_init", "pissa_init"] = "psoft_init",
    psoft_orth: bool = True,
    psoft_mag_b: bool = True,
    psoft_mag_a: bool = True,
    use_cayley_neumann: bool = False,
    num_cayley_neumann_terms: int = 5,
    cayley_neumann_eps: float | None = None,
) -> Update:
    """PSOFT: an angle of zero between fixed factors of the base."""
    del key
    if not 1 <= rank <= min(target.shape):
        raise ShapeError(f"rank is {rank}, expected from 1 to {min(target.shape)}")
    if ab_svd_init not in ("psoft_init", "pissa_init") or not alpha:
        raise UnsupportedError(
            f"ab_svd_init is {ab_svd_init!r} and alpha {alpha}, expected 'psoft_init' or "
            "'pissa_init', and an alpha other than 0"
        )
    scale, dtype = alpha / rank, target.dtype
    u, values, v = jnp.linalg.svd(target.matrix, full_matrices=False)
    u, v, values = u[:, :rank], v[:rank], values[:rank] / scale
    left = values if ab_svd_init == "psoft_init" else jnp.sqrt(values)
    right = jnp.ones_like(values) if ab_svd_init == "psoft_init" else left
    is_series = psoft_orth and use_cayley_neumann
    return PSOFT(
        right[:, None] * v,
        u * left[None],
        jnp.zeros(rank * (rank - 1) // 2, dtype) if psoft_orth else jnp.eye(rank, dtype=dtype),
        scale,
        jnp.ones(rank, dtype) if psoft_mag_b else None,
        jnp.ones(rank, dtype) if psoft_mag_a else None,
        terms=num_cayley_neumann_terms if is_series else None,
        eps=cayley_neumann_eps if is_series else None,
    )


KINDS = {
    "oft": Initializer(oft, ("linear", "convolution", "embedding")),
    "boft": Initializer(boft, ("linear", "convolution")),
    "hra": Initializer(hra, ("linear", "convolution")),
    "road": Initializer(road, ("linear",)),
    "ia3": Initializer(ia3, (*LINEAR, "convolution")),
    "psoft": Initializer(psoft, ("linear",)),
}
