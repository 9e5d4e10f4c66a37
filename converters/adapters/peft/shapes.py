"""What a site's factors must look like, and the words for those that do not."""

from typing import Any

import numpy as np

from jaxmix.errors import CheckpointError, ShapeError

__all__ = ["Factor", "Factors", "check_cores", "check_ranks", "need", "shapes", "wide"]

# The file's NumPy arrays. The families say `Array`, which is jax's, and take these as well.
Factor = Any
Factors = dict[str, Factor]


def check_ranks(factors: Factors, axes: dict[str, tuple[int, int]], rank: int) -> None:
    """Whether factors have so many axes each, and the config's rank on the one that is said."""
    wrong = []
    for name, (count, axis) in axes.items():
        factor = factors.get(name)
        if factor is None or (factor.ndim == count and factor.shape[axis] == rank and factor.size):
            continue
        expected = ", ".join(str(rank) if i == axis else "·" for i in range(count))
        wrong.append(f"{name} has shape {factor.shape}, expected ({expected})")
    if wrong:
        raise ShapeError(f"{'; '.join(wrong)} with the config's rank {rank}")


def check_cores(factors: Factors, names: tuple[str, ...], rank: int) -> None:
    """Whether Tucker cores are (r, r, *kernel), of one kernel."""
    cores = {name: factors[name] for name in names if name in factors}
    kernels = {core.shape[2:] for core in cores.values()}
    ranks = {core.shape[:2] for core in cores.values()}
    if cores and (ranks != {(rank, rank)} or len(kernels) > 1 or () in kernels):
        raise ShapeError(f"{shapes(cores)}, expected ({rank}, {rank}, kernel …) of one kernel")


def need(factors: Factors, *names: str) -> tuple[Factor, ...]:
    """The tensors of these names, all of them."""
    if missing := [name for name in names if name not in factors]:
        raise CheckpointError(f"{', '.join(missing)} missing beside {shapes(factors)}")
    return tuple(factors[name] for name in names)


def wide(factor: Factor) -> Factor:
    """The factor in float32, or as it is in float64: for what is computed with or beside it."""
    return factor.astype(np.promote_types(factor.dtype, np.float32))


def shapes(factors: Factors) -> str:
    """The factors with their shapes, in words."""
    return ", ".join(f"{name} {array.shape}" for name, array in factors.items())
