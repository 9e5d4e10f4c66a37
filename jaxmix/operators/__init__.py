"""Structured matrices: the operators of which every update's affine map is made.

An operator is a matrix ``(rows, cols)`` that remembers its structure. It can be made dense,
multiply a dense matrix or be added to one, be transposed, scaled and sliced, and say what
these cost. `add` and `multiply` fold two of them into one where the structure allows.

All are frozen dataclasses registered as pytrees: arrays are children, sizes are static. They have
the dtype of their arrays. `Zero`, `Identity` and `Permutation` have no floats and so no dtype of
their own: like Python's numbers they take that of what they meet (JAX's weak types).
"""

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal, Kronecker
from jaxmix.operators.circulant import Circulant
from jaxmix.operators.compound import Product, Sum
from jaxmix.operators.fold import add, multiply
from jaxmix.operators.lowrank import Hadamard, LowRank
from jaxmix.operators.permutation import Permutation
from jaxmix.operators.simple import Dense, Diagonal, Identity, Zero
from jaxmix.operators.sparse import Sparse
from jaxmix.operators.stacked import StackedLowRank
from jaxmix.operators.stacking import stack_factors, stack_terms
from jaxmix.operators.tiles import Tiles

__all__ = [
    "BlockDiagonal",
    "Circulant",
    "Dense",
    "Diagonal",
    "Hadamard",
    "Identity",
    "Kronecker",
    "LowRank",
    "Operator",
    "Permutation",
    "Product",
    "Sparse",
    "StackedLowRank",
    "Sum",
    "Tiles",
    "Zero",
    "add",
    "multiply",
    "stack_factors",
    "stack_terms",
]
