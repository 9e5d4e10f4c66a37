"""Quantized bases: arrays of few bits with scales, qwix's `QArray`.

qwix is imported only where there is such an array, and then it is installed. A `QArray` has an
array's ``shape``, ``dtype``, ``transpose`` and ``astype``, and so may stand where a base does; it
is read by `dequantized` at each use, in the program, and never kept at its full size.
"""

from typing import Any

from jaxtyping import Array

__all__ = ["dequantized", "is_quantized"]


def is_quantized(x: Any) -> bool:
    """Whether something is qwix's array of few bits with scales."""
    kind = type(x)
    return kind.__name__ == "QArray" and kind.__module__.split(".")[0] == "qwix"


def dequantized(x: Any) -> Array:
    """The array that a quantized one stands for; any other as it is."""
    if not is_quantized(x):
        return x
    import qwix

    return qwix.dequantize(x)
