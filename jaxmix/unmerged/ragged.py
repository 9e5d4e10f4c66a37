"""`jax.lax.ragged_dot` of experts, with a stack of weights that keep base and map separate."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.apply.plan import arithmetic, cast
from jaxmix.operators import Diagonal, Identity, LowRank, Operator, Zero
from jaxmix.unmerged.costs import choose, of_dense, of_operators
from jaxmix.unmerged.lookups import sum_as_low_rank
from jaxmix.unmerged.products import precise
from jaxmix.unmerged.weight import Weight

__all__ = ["is_ragged", "ragged_dot"]


def is_ragged(expert: AffineMap) -> bool:
    """Returns whether an expert's map consists of diagonals and a low rank.

    Args:
        expert: The map of one expert.

    Returns:
        True if `ragged_dot` has a factored form for it.

    Example:
        >>> from jaxmix.affine import identity, shift
        >>> from jaxmix.operators import Dense
        >>> is_ragged(identity((2, 3))), is_ragged(shift(Dense(jnp.ones((2, 3)))))
        (True, False)
    """
    sides = isinstance(expert.left, Identity | Diagonal) and isinstance(
        expert.right, Identity | Diagonal
    )
    return sides and sum_as_low_rank(expert.shift) is not None


def ragged_dot(x: Array, weight: Weight, sizes: Array, **params: Any) -> Array | None:
    """``yₜ = Lₑ(xₜ Rₑ Wₑᵀ) + xₜ Aₑᵀ Bₑᵀ``, e the expert of token t: three ragged products.

    Args:
        x: Tokens (n, in), grouped by expert.
        weight: The experts' weights, with one axis each for expert, in and out.
        sizes: The number of tokens of each expert (experts,).
        **params: The primitive's parameters.

    Returns:
        (n, out); None without a factored form.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    (x_sum, w_sum), batch = numbers.dot_dimension_numbers
    rows, cols, stack = weight.axes
    is_transposed = tuple(w_sum) == rows and tuple(w_sum) != cols
    if (
        stack is None
        or tuple(w_sum) not in (rows, cols)
        or tuple(numbers.rhs_group_dimensions) != (stack,)
        or (*x_sum, *numbers.lhs_ragged_dimensions) != (1, 0)
        or any(batch)
        or params.get("group_offset") is not None
    ):
        return None
    experts, tokens = weight.shape[stack], x.shape[0]
    if not weight.count(is_ragged):
        return None
    turn = {name: params[name] for name in ("precision", "preferred_element_type")}

    def by_operators(x: Array, weight: Weight, sizes: Array) -> Array:
        dtype = arithmetic(x.dtype)
        expert_maps = cast(weight.map_to(is_transposed), dtype)
        which = jnp.repeat(jnp.arange(experts), sizes, total_repeat_length=tokens)
        with precise(params["precision"]):
            inputs = _scaled(x.astype(dtype), expert_maps.right, which).astype(x.dtype)
            y = lax.ragged_dot_general(inputs, weight.plain(), sizes, numbers, **turn)
            out = _scaled(y.astype(dtype), expert_maps.left, which)
            if not isinstance(expert_maps.shift, Zero):
                low = jax.vmap(sum_as_low_rank)(expert_maps.shift)
                assert isinstance(low, LowRank)
                thin = lax.ragged_dot(x.astype(dtype), low.a.swapaxes(1, 2), sizes)
                out = out + lax.ragged_dot(thin, low.b.swapaxes(1, 2), sizes)
        return out.astype(y.dtype)

    def by_dense(x: Array, weight: Weight, sizes: Array) -> Array:
        return lax.ragged_dot_general(x, weight.dense(), sizes, numbers, **turn)

    thin = of_operators(weight, -(-tokens // experts), is_transposed), by_operators
    return choose(weight, thin, [(of_dense(weight), by_dense)], x, weight, sizes)


def _scaled(x: Float[Array, "n i"], side: Operator, which: Array) -> Float[Array, "n i"]:
    """Multiplies each token by its expert's diagonal, if it has one."""
    return x * side.d[which] if isinstance(side, Diagonal) else x
