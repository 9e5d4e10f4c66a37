"""`combine` merges several adapters into one, by task arithmetic, TIES, DARE and other methods."""

from jaxmix.combining.combining import combine
from jaxmix.combining.methods import METHODS
from jaxmix.combining.overlap import look_alikes, look_alikes_text, partial_sites, partial_text

__all__ = [
    "METHODS",
    "combine",
    "look_alikes",
    "look_alikes_text",
    "partial_sites",
    "partial_text",
]
