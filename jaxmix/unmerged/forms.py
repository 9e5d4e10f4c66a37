"""The forms of a product of tokens and a weight that keeps base and map separate."""

from typing import Literal

from jaxmix.operators import Hadamard, LowRank, Operator, Zero, add, terms
from jaxmix.unmerged.costs import Cost, of_dense, of_operators, of_view, on_this_platform, sum_of
from jaxmix.unmerged.in_view import rows_of_view
from jaxmix.unmerged.weight import Weight

__all__ = ["ProductForm", "chosen_here", "product_costs", "thin_and_heavy"]

# By the operators; by the low ranks, while other terms are added to the weight as it is read; by
# the low ranks and a dense weight with the other terms; by the dense weight.
ProductForm = Literal["factored", "view", "partly dense", "dense"]


def product_costs(weight: Weight, tokens: int, is_transposed: bool) -> dict[ProductForm, Cost]:
    """Returns the forms in which a product can be computed, and what each costs by backend.

    Args:
        weight: The weight.
        tokens: The number of tokens.
        is_transposed: Whether the product sums over the matrix's rows.

    Returns:
        The costs, in the order in which forms of equal costs are preferred.
    """
    costs: dict[ProductForm, Cost] = {"factored": of_operators(weight, tokens, is_transposed)}
    if weight.map.is_shift and not weight.is_stacked:
        thin, heavy = thin_and_heavy(weight)
        thin_cost = of_operators(thin, tokens, is_transposed)
        if rows_of_view(heavy) is not None:
            costs["view"] = sum_of(thin_cost, of_view(heavy))
        if not isinstance(thin.map.shift, Zero) and not isinstance(heavy.map.shift, Zero):
            costs["partly dense"] = sum_of(thin_cost, of_dense(heavy))
    costs["dense"] = of_dense(weight)
    return costs


def chosen_here(weight: Weight, tokens: int) -> ProductForm:
    """Returns the form of a product over the weight's inputs on this process's platform.

    Args:
        weight: The weight.
        tokens: The number of tokens.
    """
    costs, here = product_costs(weight, tokens, False), on_this_platform()
    return min(costs, key=lambda form: costs[form](here))


def thin_and_heavy(weight: Weight) -> tuple[Weight, Weight]:
    """Returns the weight with the low ranks of Δ only, and with the other terms only.

    Args:
        weight: The weight, whose map only adds Δ.
    """
    thin: Operator = Zero(*weight.map.shape)
    heavy: Operator = Zero(*weight.map.shape)
    for term in terms(weight.map.shift):
        if isinstance(term, LowRank | Hadamard):
            thin = add(thin, term)
        else:
            heavy = add(heavy, term)
    return weight.with_delta(thin), weight.with_delta(heavy)
