"""What a site's factors must look like, and the words for those that do not."""

from typing import Any

from jaxmix.errors import CheckpointError, ShapeError

__all__ = ["Factor", "Factors", "check_cores", "check_ranks", "need", "shapes"]

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
    """Whether Tucker cores are (r, r, *kernel)."""
    for name in names:
        core = factors.get(name)
        if core is not None and (core.ndim < 3 or core.shape[:2] != (rank, rank)):
            raise ShapeError(f"{name} has shape {core.shape}, expected ({rank}, {rank}, kernel …)")


def need(factors: Factors, *names: str) -> tuple[Factor, ...]:
    """The tensors of these names, all of them."""
    if missing := [name for name in names if name not in factors]:
        raise CheckpointError(f"{', '.join(missing)} missing beside {shapes(factors)}")
    return tuple(factors[name] for name in names)


def shapes(factors: Factors) -> str:
    """The factors with their shapes, in words."""
    return ", ".join(f"{name} {array.shape}" for name, array in factors.items())
