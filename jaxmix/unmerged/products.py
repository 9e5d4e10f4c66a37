"""Products with a weight that keeps base and map separate: ``y = L((x R) Wᵀ) + x Δᵀ``."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap
from jaxmix.apply.plan import arithmetic, cast
from jaxmix.operators import Identity, Operator, Zero
from jaxmix.operators.backends import Backend
from jaxmix.unmerged.costs import choose
from jaxmix.unmerged.forms import ProductForm, product_costs, thin_and_heavy
from jaxmix.unmerged.in_view import product_in_view
from jaxmix.unmerged.weight import Weight, on_platform

__all__ = ["dot_general", "precise"]


def dot_general(lhs: Array | Weight, rhs: Array | Weight, **params: Any) -> Array | None:
    """``lax.dot_general`` with a weight on one side.

    If the product sums over all columns of the matrix, or over all rows, tokens are multiplied by
    the operators, or by the dense weight if that is cheaper.

    Returns:
        The product; None without a factored form.
    """
    (lc, rc), (lb, rb) = params["dimension_numbers"]
    x: Any
    if isinstance(rhs, Weight):
        weight, x, (wc, wb), (xc, xb) = rhs, lhs, (rc, rb), (lc, lb)
        last = True
    else:
        assert isinstance(lhs, Weight)
        weight, x, (wc, wb), (xc, xb) = lhs, rhs, (lc, lb), (rc, rb)
        last = False
    x = jnp.asarray(x)
    plan = _Plan.of(weight, x, tuple(wc), tuple(wb), tuple(xc), tuple(xb))

    def base_product(x: Any, w: Any) -> Array:
        return lax.dot_general(*((x, w) if last else (w, x)), **params)

    if plan is None:
        return None

    def by_operators(x: Array, weight: Weight) -> Array:
        own = replace(plan, weight=weight)
        return own.run(x, base_product, weight_last=last, precision=params["precision"])

    def by_dense(x: Array, weight: Weight) -> Array:
        return base_product(x, weight.dense())

    def by_parts(x: Array, weight: Weight) -> Array:
        thin, heavy = thin_and_heavy(weight)
        return by_operators(x, replace(thin, base=heavy.dense()))

    def by_view(x: Array, weight: Weight) -> Array:
        thin, heavy = thin_and_heavy(weight)

        def product(x: Any, w: Any) -> Array:
            return product_in_view(x, heavy, is_last=last, **params)

        own = replace(plan, weight=thin)
        return own.run(x, product, weight_last=last, precision=params["precision"])

    functions: dict[ProductForm, Callable[..., Array]] = {
        "factored": by_operators,
        "view": by_view,
        "partly dense": by_parts,
        "dense": by_dense,
    }
    costs = product_costs(weight, plan.tokens, plan.is_transposed)
    first, *others = [(cost, functions[form]) for form, cost in costs.items()]
    return choose(weight, first, others, x, weight)


@dataclass(frozen=True)
class _Plan:
    """The roles of the axes of x and of a weight in their product, as tokens times a matrix.

    In shapes, s is the stack's size, n the number of tokens, i the size that is summed over, and o
    the remaining size of the weight.
    """

    weight: Weight
    is_transposed: bool
    tokens: int
    weight_batch: tuple[int, ...]
    x_batch: tuple[int, ...]
    x_sum: tuple[int, ...]
    x_free: tuple[int, ...]

    @property
    def stack(self) -> int | None:
        """The axis along which the weight's maps differ."""
        return self.weight.axes[2]

    @property
    def left_axes(self) -> tuple[int, ...]:
        """The weight's axes that remain."""
        rows, cols, _ = self.weight.axes
        return cols if self.is_transposed else rows

    @property
    def is_batched(self) -> bool:
        """Whether each entry of the stack has its own tokens."""
        return bool(self.weight_batch)

    @property
    def is_free(self) -> bool:
        """Whether all entries of the stack have the same tokens."""
        return self.stack is not None and not self.weight_batch

    @classmethod
    def of(cls, weight: Weight, x: Array, wc: Any, wb: Any, xc: Any, xb: Any) -> "_Plan | None":
        """The plan; None without a factored form."""
        rows, cols, stack = weight.axes
        is_transposed = set(wc) == set(rows) and set(wc) != set(cols)
        summed = rows if is_transposed else cols
        if set(wc) != set(summed) or wb not in ((), (stack,)):
            return None
        x_sum = tuple(xc[wc.index(axis)] for axis in summed)
        x_free = tuple(k for k in range(x.ndim) if k not in (*xc, *xb))
        tokens = math.prod(x.shape[k] for k in x_free)
        rotates = not isinstance(weight.map.left if is_transposed else weight.map.right, Identity)
        if stack is not None and not wb and rotates:
            return None
        return cls(weight, is_transposed, tokens, wb, xb, x_sum, x_free)

    def run(
        self, x: Array, base_product: Callable[[Any, Any], Array], weight_last: bool, precision: Any
    ) -> Array:
        """The product."""
        step = self.weight.map_to(self.is_transposed)
        order = (*self.x_batch, *self.x_free, *self.x_sum)
        moved = x.transpose(order)
        sizes = moved.shape
        n_batch, n_free = len(self.x_batch), len(self.x_free)
        tokens = moved.reshape(
            *sizes[:n_batch],
            math.prod(sizes[n_batch : n_batch + n_free]),
            math.prod(sizes[n_batch + n_free :]),
        ).astype(arithmetic(x.dtype))
        step = cast(step, tokens.dtype)
        with precise(precision):
            if not isinstance(step.right, Identity):
                rotate = partial(_rotated, x.dtype)
                rotated = (jax.vmap(rotate) if self.is_batched else rotate)(tokens, step.right)
                back = sorted(range(x.ndim), key=order.__getitem__)
                x = rotated.reshape(sizes).transpose(back)
                filled = partial(self._filled_product, base_product, weight_last)
                y = on_platform(x, base_product, filled, x, self.weight.plain())
            else:
                y = base_product(x, self.weight.plain())
            if isinstance(step.left, Identity) and isinstance(step.shift, Zero):
                return y
            return self._finished(y, tokens, step, sizes[: n_batch + n_free], weight_last)

    def _filled_product(
        self,
        base_product: Callable[[Any, Any], Array],
        weight_last: bool,
        backend: Backend,
        x: Array,
        w: Array,
    ) -> Array:
        """The base's product, with as many tokens as a backend needs.

        Other products of a single token are one with those of the same token, and read weights as
        fast as possible; a rotated token has no other product.
        """
        if self.tokens >= backend.least_tokens or not self.x_free or self.stack is not None:
            return base_product(x, w)
        axis = self.x_free[-1]
        widths = [(0, backend.least_tokens - 1 if k == axis else 0) for k in range(x.ndim)]
        # Otherwise XLA takes the zeros out of the product again.
        y = base_product(lax.optimization_barrier(jnp.pad(x, widths)), w)
        at = len(self.x_free) - 1 + (0 if weight_last else len(self.left_axes))
        return lax.slice_in_dim(lax.optimization_barrier(y), 0, x.shape[axis], axis=at)

    def _finished(
        self, y: Array, tokens: Array, step: AffineMap, lead: Sequence[int], weight_last: bool
    ) -> Array:
        """``L y + x Δᵀ``, with y's axes as in the product."""
        n_batch, n_free = len(self.x_batch), len(self.x_free)
        # The weight's remaining axes, in their order in the product.
        free = (self.stack,) if self.is_free and self.stack is not None else ()
        left = sorted((*self.left_axes, *free))
        if weight_last:
            x_at, w_at = n_batch, n_batch + n_free
        else:
            x_at, w_at = n_batch + len(left), n_batch
        at = {axis: w_at + k for k, axis in enumerate(left)}
        order = [
            *range(n_batch),
            *range(x_at, x_at + n_free),
            *(at[axis] for axis in free),
            *(at[axis] for axis in self.left_axes),
        ]
        moved = y.transpose(order)
        out = math.prod(moved.shape[len(order) - len(self.left_axes) :])
        count = math.prod(lead[n_batch:])
        stacks = moved.shape[n_batch + n_free : n_batch + n_free + len(free)]
        flat = moved.reshape(*lead[:n_batch], count, *stacks, out)
        finish = _finish
        if self.is_batched:
            finish = jax.vmap(_finish)
        elif self.is_free:
            finish = jax.vmap(_finish, in_axes=(1, None, 0, 0), out_axes=1)
        done = finish(flat.astype(tokens.dtype), tokens, step.left, step.shift)
        back = sorted(range(len(order)), key=order.__getitem__)
        return done.reshape(moved.shape).transpose(back).astype(y.dtype)


def _rotated(dtype: Any, x: Float[Array, "n i"], m: Operator) -> Float[Array, "n o"]:
    """``x R``, in a dtype."""

    def on_cpu(x: Array, m: Operator) -> Array:
        return (x @ m).astype(dtype)

    def on_accelerator(backend: Backend, x: Array, m: Operator) -> Array:
        return backend.rotated(x, m, dtype)

    return on_platform(x, on_cpu, on_accelerator, x, m)


def _finish(
    y: Float[Array, "n o"], x: Float[Array, "n i"], left: Operator, shift: Operator
) -> Float[Array, "n o"]:
    """``y Lᵀ + x Δᵀ``."""
    if not isinstance(left, Identity):
        y = y @ left.T
    return y if isinstance(shift, Zero) else shift.T.product_added_to(y, x)


_NAMES = {lax.Precision.HIGHEST: "highest", lax.Precision.HIGH: "high"}


def precise(precision: Any) -> AbstractContextManager[Any]:
    """Computes the operators' products with the precision requested for the base's."""
    first = precision[0] if isinstance(precision, tuple) else precision
    name = _NAMES.get(first)
    return nullcontext() if name is None else jax.default_matmul_precision(name)
