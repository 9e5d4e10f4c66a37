"""Packed weights of quantized checkpoints: a reader a quantization, one table of all of them."""

from jaxmix.converters.checkpoints.quantization.packed import Packed
from jaxmix.converters.checkpoints.quantization.methods import look, quantization_method, unpacked

__all__ = ["Packed", "look", "quantization_method", "unpacked"]
