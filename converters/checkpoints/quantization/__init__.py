"""Packed weights of quantized checkpoints: one reader for each method, and a table of them."""

from jaxmix.converters.checkpoints.quantization.methods import (
    find_packed,
    quantization_method,
    unpacked,
)
from jaxmix.converters.checkpoints.quantization.packed import Packed

__all__ = ["Packed", "find_packed", "quantization_method", "unpacked"]
