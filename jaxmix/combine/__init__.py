"""`combine`: several adapters of any kinds as one, by task arithmetic, TIES, DARE and others."""

from jaxmix.combine.combining import combine
from jaxmix.combine.methods import METHODS
from jaxmix.combine.overlap import partial_sites, partial_text

__all__ = ["METHODS", "combine", "partial_sites", "partial_text"]
