"""`combine`: several adapters of any kinds as one, by task arithmetic, TIES, DARE and others."""

from jaxmix.combine.combining import combine
from jaxmix.combine.methods import METHODS
from jaxmix.combine.overlap import look_alikes, look_alikes_text, partial_sites, partial_text

__all__ = [
    "METHODS",
    "combine",
    "look_alikes",
    "look_alikes_text",
    "partial_sites",
    "partial_text",
]
