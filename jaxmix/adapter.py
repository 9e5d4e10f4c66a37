"""Adapters: a name, a strength and ``{site: update}``; and mixes of them, which are adapters too."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxmix.errors import AdapterError
from jaxmix.families import Together, Update

__all__ = ["Adapter", "Label", "Mix", "Part", "Word"]

# What acts on one site: strengths and updates, the first one first.
type_word = tuple[tuple[Any, Update], ...]
Word = type_word


class Label(str):
    """A name that does not count when pytrees are compared.

    Static data of a pytree is part of jit's key. A name must not be: two adapters of equal shapes
    are the same program, whatever they are called (law 5).
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Label)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(Label)
