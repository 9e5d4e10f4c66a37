"""`combine`: several adapters of any kinds as one, by task arithmetic, TIES, DARE and others."""

from jaxmix.combine.combining import combine
from jaxmix.combine.methods import METHODS

__all__ = ["METHODS", "combine"]
