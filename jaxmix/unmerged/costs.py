"""What products cost by the operators and by the dense weight, on each backend."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxmix.affine import AffineMap
from jaxmix.operators import Diagonal, Hadamard, Identity, LowRank, Operator, Product, Zero, terms
from jaxmix.unmerged.weight import Weight, on_platform

__all__ = ["ACCELERATOR", "CPU", "Costs", "added_flops", "choose", "is_cheaper"]


@dataclass(frozen=True)
class Costs:
    """What moving numbers costs, in the operations that take as long.

    Args:
        weight: A number of a weight that is made dense.
        fused: A number of a token that an operator reads or writes in a pass that XLA fuses.
        moved: The same where the operator rearranges tokens (blocks, Kronecker products).
    """

    weight: int
    fused: int
    moved: int

    def operators(self, one: AffineMap, tokens: int) -> int:
        """The cost that the operators add to the base's product."""
        numbers = sum(map(self._numbers, (one.left, one.right, one.shift)))
        return added_flops(one, tokens) + tokens * numbers

    def dense(self, one: AffineMap) -> int:
        """The cost of making the dense weight."""
        return one.flops() + self.weight * math.prod(one.shape)

    def _numbers(self, operator: Operator) -> int:
        """The cost of a token's passes through an operator."""
        match operator:
            case Identity() | Zero():
                return 0
            case Product():
                return self._numbers(operator.first) + self._numbers(operator.second)
            case LowRank() | Hadamard() | Diagonal():
                return self.fused * sum(operator.shape)
            case _ if len(terms(operator)) > 1:
                return sum(map(self._numbers, terms(operator)))
            case _:
                return self.moved * sum(operator.shape)


# On two CPU cores a pass over a weight takes as long as 16 operations a number.
CPU = Costs(weight=16, fused=0, moved=0)
# A v5e does 240 operations in the time of one byte, an H100 295, a v6e 560. A dense bfloat16 weight
# is written and read: 4 bytes. By the TPU's compiler, LoRA's passes over tokens take about 2 bytes
# a number, and a Kronecker product 32: its tokens change their layout several times.
ACCELERATOR = Costs(weight=240 * 4, fused=240 * 2, moved=240 * 32)


def choose(
    weight: Weight,
    measure: Callable[[Costs], bool],
    by_operators: Callable[..., Any],
    by_dense: Callable[..., Any],
    *args: Any,
) -> Any:
    """Computes a product by the operators or by the dense weight, whichever costs less.

    Args:
        weight: The weight, which may specify the choice.
        measure: Whether the operators cost less on a backend.
        by_operators: The product by the operators.
        by_dense: The product by the dense weight.
        *args: The arguments of both, the tokens first.

    Returns:
        The product.
    """
    if weight.how != "auto":
        return (by_operators if weight.how == "factored" else by_dense)(*args)
    on_cpu, on_accelerator = (
        by_operators if measure(costs) else by_dense for costs in (CPU, ACCELERATOR)
    )
    if on_cpu is on_accelerator:
        return on_cpu(*args)
    return on_platform(args[0], on_cpu, lambda backend, *args: on_accelerator(*args), *args)


def is_cheaper(weight: Weight, tokens: int, turned: bool) -> Callable[[Costs], bool]:
    """Returns whether products with this many tokens cost less with the operators, by backend."""

    def measure(costs: Costs) -> bool:
        def is_less(one: AffineMap) -> bool:
            return costs.operators(one.T if turned else one, tokens) <= costs.dense(one)

        return weight.count(is_less)

    return measure


def added_flops(one: AffineMap, tokens: int) -> int:
    """The operations that the operators add to the base's product with this many tokens."""
    sides = one.left.matmul_flops(tokens) + one.right.matmul_flops(tokens)
    if isinstance(one.shift, Zero):
        return sides
    return sides + one.shift.matmul_flops(tokens) + one.shape[0] * tokens
