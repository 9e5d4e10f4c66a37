"""How each kind of adapter is initialized: one row per kind in the table `KINDS`."""

from jaxmix.training.initializers import (
    base_readers,
    decomposed,
    leaves,
    lora,
    products,
    rotations,
    shared,
    sparse,
)
from jaxmix.training.initializers.initializer import Initializer

__all__ = ["KINDS", "Initializer"]

KINDS: dict[str, Initializer] = {
    **lora.KINDS,
    **products.KINDS,
    **rotations.KINDS,
    **sparse.KINDS,
    **shared.KINDS,
    **base_readers.KINDS,
    **decomposed.KINDS,
    **leaves.KINDS,
}
