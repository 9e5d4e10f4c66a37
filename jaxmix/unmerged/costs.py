"""What products cost by the operators and by the dense weight, on each backend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from jaxmix.affine import AffineMap
from jaxmix.operators import (
    BlockDiagonal,
    Diagonal,
    Hadamard,
    Identity,
    LowRank,
    Operator,
    Product,
    Zero,
    terms,
)
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.unmerged.weight import Weight, on_platform

__all__ = [
    "CPU",
    "Costs",
    "added_flops",
    "cheapest",
    "choose",
    "of_backend",
    "of_dense",
    "of_operators",
    "of_view",
    "on_this_platform",
    "sum_of",
]


@dataclass(frozen=True)
class Costs:
    """What moving numbers costs, in the operations that take as long.

    Args:
        weight: A number of a weight that is made dense.
        fused: A number of a token that an operator reads or writes in a pass that XLA fuses.
        moved: The same where the operator rearranges tokens (Kronecker products).
        rotated: The same where it multiplies them by blocks.
        accurate: An operation of a product of factors, which are multiplied in float32.
        viewed: A number of a weight to which Kronecker products are added while it is read.
    """

    weight: int
    fused: int
    moved: int
    rotated: int
    accurate: int
    viewed: float = math.inf

    def operators(self, step: AffineMap, tokens: int) -> int:
        """The cost that the operators add to the base's product."""
        numbers = sum(map(self._numbers, (step.left, step.right, step.shift)))
        return added_flops(step, tokens) + tokens * numbers

    def dense(self, step: AffineMap) -> int:
        """The cost of making the dense weight."""
        return self.accurate * step.flops() + self.weight * math.prod(step.shape)

    def view(self, step: AffineMap) -> float:
        """The cost of Kronecker products that are added to the weight while it is read."""
        return self.viewed * math.prod(step.shape)

    def _numbers(self, operator: Operator) -> int:
        """The cost of a token's passes through an operator."""
        match operator:
            case Identity() | Zero():
                return 0
            case Product():
                return self._numbers(operator.first) + self._numbers(operator.second)
            case LowRank() | Hadamard() | Diagonal():
                return self.fused * sum(operator.shape)
            case BlockDiagonal():
                return self.rotated * sum(operator.shape)
            case _ if len(terms(operator)) > 1:
                return sum(map(self._numbers, terms(operator)))
            case _:
                return self.moved * sum(operator.shape)


# On two CPU cores a pass over a weight takes as long as 16 operations a number.
CPU = Costs(weight=16, fused=0, moved=0, rotated=0, accurate=1)
# A v5e does 240 operations in the time of one byte, an H100 295, a v6e 560. A dense bfloat16 weight
# is written and read: 4 bytes. By the TPU compiler's estimate for 2048 tokens, a low rank's passes
# over tokens take half a byte a number, and those of a Kronecker product 32: its tokens change
# their layout several times. A float32 product takes six bfloat16 passes.
_ON_GPU = Costs(weight=240 * 4, fused=240 // 2, moved=240 * 32, rotated=240 * 32, accurate=6)
# For one token, where XLA leaves the matrix unit idle, Kronecker products that are added to a
# weight while it is read took 1.07 of the base, and those of tokens 1.02. For 128 and 2048 tokens
# they took 1.00 and 0.94. A rotation in coarse blocks takes 3 to 4 bytes a number of a token.
_ON_TPU = replace(_ON_GPU, rotated=240 * 4, viewed=64)


def of_backend(backend: Backend) -> Costs:
    """The costs of a backend other than the CPU."""
    return _ON_TPU if backend.has_tiles else _ON_GPU


# How a product is computed, and what that costs.
Cost = Callable[[Costs], float]
Form = tuple[Cost, Callable[..., Any]]


def choose(weight: Weight, by_operators: Form, others: Sequence[Form], *args: Any) -> Any:
    """Computes a product in the form that costs least on the platform.

    Args:
        weight: The weight, which may specify the choice.
        by_operators: The product by the operators. It is taken if no other form costs less.
        others: Other forms. The last one makes the dense weight.
        *args: The arguments of all forms, the tokens first.

    Returns:
        The product.
    """
    forms = (by_operators, *others)
    if weight.how != "auto":
        return forms[0 if weight.how == "factored" else -1][1](*args)
    on_cpu = cheapest(forms, CPU)
    if on_cpu is cheapest(forms, _ON_TPU) is cheapest(forms, _ON_GPU):
        return on_cpu(*args)
    return on_platform(args[0], on_cpu, partial(_on_accelerator, forms), *args)


def cheapest(forms: Sequence[Form], costs: Costs) -> Callable[..., Any]:
    """Returns the form that costs least, the first of equals.

    Args:
        forms: The forms.
        costs: The costs of the backend.
    """
    return min(forms, key=lambda form: form[0](costs))[1]


def _on_accelerator(forms: Sequence[Form], backend: Backend, *args: Any) -> Any:
    """The product in the form that costs least on a backend."""
    return cheapest(forms, of_backend(backend))(*args)


def of_operators(weight: Weight, tokens: int, is_transposed: bool) -> Cost:
    """Returns the cost of the operators with this many tokens, by backend."""

    def cost(costs: Costs) -> int:
        return weight.count(lambda step: costs.operators(step.T if is_transposed else step, tokens))

    return cost


def of_dense(weight: Weight) -> Cost:
    """Returns the cost of making the dense weight, by backend."""
    return lambda costs: weight.count(costs.dense)


def of_view(weight: Weight) -> Cost:
    """Returns the cost of Kronecker products that are added while the weight is read."""
    return lambda costs: weight.count(costs.view)


def sum_of(*costs: Cost) -> Cost:
    """Returns the sum of costs, by backend."""
    return lambda backend: sum(cost(backend) for cost in costs)


def on_this_platform() -> Costs:
    """Returns the costs of this process's platform."""
    platform = jax.default_backend()
    return CPU if platform == "cpu" else of_backend(TPU if platform == "tpu" else GPU)


def added_flops(step: AffineMap, tokens: int) -> int:
    """The operations that the operators add to the base's product with this many tokens."""
    sides = step.left.matmul_flops(tokens) + step.right.matmul_flops(tokens)
    if isinstance(step.shift, Zero):
        return sides
    return sides + step.shift.matmul_flops(tokens) + step.shape[0] * tokens
