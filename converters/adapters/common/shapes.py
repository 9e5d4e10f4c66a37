"""Checks the shapes of a site's tensors, and describes them for error messages."""

from typing import Any

import numpy as np

from jaxmix.errors import CheckpointError, ShapeError

__all__ = [
    "Factor",
    "SiteTensors",
    "at_least_float32",
    "check_cores",
    "check_ranks",
    "describe_shapes",
    "required",
]

# NumPy arrays from the file. The families annotate `Array`, which is jax's, and take these as well.
Factor = Any
SiteTensors = dict[str, Factor]


def check_ranks(factors: SiteTensors, axes: dict[str, tuple[int, int]], rank: int) -> None:
    """Checks the number of axes of factors, and that one of them has the config's rank.

    Args:
        factors: The tensors of a site.
        axes: For each factor its number of axes, and the axis of the rank.
        rank: The rank.

    Raises:
        ShapeError: If they differ; all such factors are listed.
    """
    wrong = []
    for name, (count, axis) in axes.items():
        factor = factors.get(name)
        if factor is None or (factor.ndim == count and factor.shape[axis] == rank and factor.size):
            continue
        expected = ", ".join(str(rank) if i == axis else "·" for i in range(count))
        wrong.append(f"{name} has shape {factor.shape}, expected ({expected})")
    if wrong:
        raise ShapeError(f"{'; '.join(wrong)} with the config's rank {rank}")


def check_cores(factors: SiteTensors, names: tuple[str, ...], rank: int) -> None:
    """Checks that Tucker cores are (r, r, *kernel), all with the same kernel."""
    cores = {name: factors[name] for name in names if name in factors}
    kernels = {core.shape[2:] for core in cores.values()}
    ranks = {core.shape[:2] for core in cores.values()}
    if cores and (ranks != {(rank, rank)} or len(kernels) > 1 or () in kernels):
        raise ShapeError(
            f"{describe_shapes(cores)}, expected ({rank}, {rank}, *kernel) with one kernel"
        )


def required(factors: SiteTensors, *names: str) -> tuple[Factor, ...]:
    """Returns the tensors of these names.

    Raises:
        CheckpointError: If some are missing.
    """
    if missing := [name for name in names if name not in factors]:
        verb = "is" if len(missing) == 1 else "are"
        found = describe_shapes(factors) or "nothing"
        raise CheckpointError(f"{', '.join(missing)} {verb} missing; found {found}")
    return tuple(factors[name] for name in names)


def at_least_float32(factor: Factor) -> Factor:
    """Casts 16-bit floats to float32, for computing with them; others stay as they are."""
    return factor.astype(np.promote_types(factor.dtype, np.float32))


def describe_shapes(factors: SiteTensors) -> str:
    """Lists the factors with their shapes: ``lora_A (8, 64), lora_B (32, 8)``."""
    return ", ".join(f"{name} {array.shape}" for name, array in factors.items())
