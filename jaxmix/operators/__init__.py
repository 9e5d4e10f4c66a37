"""Structured matrices: the operators that make up the affine map of every update.

An operator is a matrix ``(rows, cols)`` with a known structure. It can be made dense, multiplied
with a dense matrix or added to one, transposed, scaled and sliced, and it reports what each of
these costs. `add` and `multiply` fold two operators into one where their structures allow it.

Operators are frozen dataclasses registered as pytrees: arrays are children, sizes are static. An
operator has the dtype of its arrays. `Zero`, `Identity` and `Permutation` hold no floats, so they
have no dtype of their own and adopt that of the other operand, as JAX's weak types do.
"""

from jaxmix.operators.base import Operator
from jaxmix.operators.blocks import BlockDiagonal, Kronecker
from jaxmix.operators.circulant import Circulant
from jaxmix.operators.compound import Product, Sum, terms
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
    "terms",
]
