"""The kinds of adapters that `jaxmix.init` makes: a line in a table each."""

from jaxmix.training.kinds import (
    decomposed,
    lora,
    products,
    reading,
    shared,
    sparse,
    turning,
    whole,
)
from jaxmix.training.kinds.kind import Kind

__all__ = ["KINDS", "Kind"]

KINDS: dict[str, Kind] = {
    **lora.KINDS,
    **products.KINDS,
    **turning.KINDS,
    **sparse.KINDS,
    **shared.KINDS,
    **reading.KINDS,
    **decomposed.KINDS,
    **whole.KINDS,
}
