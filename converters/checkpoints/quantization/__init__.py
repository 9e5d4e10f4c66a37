"""Packed weights of quantized checkpoints: a reader a quantization, one table of all of them."""

from jaxmix.converters.checkpoints.quantization.packed import Packed
from jaxmix.converters.checkpoints.quantization.table import look, method_of, unpacked

__all__ = ["Packed", "look", "method_of", "unpacked"]
