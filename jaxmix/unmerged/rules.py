"""Operations with a factored form: one rule per primitive, from inputs to outputs.

A rule returns None if the operation has no factored form for its weights. If there is one but the
dense weight costs less, the rule makes the dense weight itself.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax import lax

from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged import lookups, products, ragged, views
from jaxmix.unmerged.weight import Weight

__all__ = ["RULES", "Values"]

Values = list[Any]
Rule = Callable[[Any, Values], Values | None]


def _product(params: Any, values: Values) -> Values | None:
    lhs, rhs = values
    if isinstance(lhs, Weight) and isinstance(rhs, Weight):
        return None
    return _one(products.dot_general(lhs, rhs, **params))


def _convolved(params: Any, values: Values) -> Values | None:
    x, weight = values
    if isinstance(x, Weight) or not isinstance(weight, Weight):
        return None
    return _one(lookups.conv(x, weight, **params))


def _ragged(params: Any, values: Values) -> Values | None:
    x, weight, sizes = values
    if isinstance(x, Weight) or not isinstance(weight, Weight) or isinstance(sizes, Weight):
        return None
    return _one(ragged.ragged_dot(jax.numpy.asarray(x), weight, sizes, **params))


def _looked_up(params: Any, values: Values) -> Values | None:
    weight, at = values
    if not isinstance(weight, Weight) or isinstance(at, Weight):
        return None
    if weight.is_stacked:
        return _one(views.picked(weight, jax.numpy.asarray(at), **params))
    return _one(lookups.gather(weight, at, **params))


def _transposed(params: Any, values: Values) -> Values:
    return [values[0].moved(params["permutation"])]


def _cast(params: Any, values: Values) -> Values | None:
    dtype = params["new_dtype"]
    return [values[0].cast(dtype)] if jax.numpy.issubdtype(dtype, jax.numpy.floating) else None


def _reshaped(params: Any, values: Values) -> Values | None:
    if len(values) > 1 or params.get("dimensions") is not None:
        return None
    return _one(views.reshaped(values[0], params["new_sizes"]))


def _broadcast(params: Any, values: Values) -> Values | None:
    """Broadcasts only by adding axes of size one."""
    sizes, axes = params["shape"], params["broadcast_dimensions"]
    if len(values) > 1 or [sizes[k] for k in axes] != list(values[0].shape):
        return None
    if any(sizes[k] != 1 for k in range(len(sizes)) if k not in axes):
        return None
    return _one(views.reshaped(values[0], sizes))


def _squeezed(params: Any, values: Values) -> Values | None:
    weight, axes = values[0], params["dimensions"]
    if tuple(axes) == (weight.axes[2],):
        return _one(views.unstacked(weight))
    sizes = [n for k, n in enumerate(weight.shape) if k not in axes]
    return _one(views.reshaped(weight, sizes))


def _sliced(params: Any, values: Values) -> Values | None:
    if any(step != 1 for step in params["strides"] or ()):
        return None
    starts, ends = params["start_indices"], params["limit_indices"]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    return _one(views.sliced(values[0], starts, sizes))


def _dynamically_sliced(params: Any, values: Values) -> Values | None:
    weight, *starts = values
    if not isinstance(weight, Weight):
        return None
    return _one(views.sliced(weight, starts, params["slice_sizes"]))


def _kept(params: Any, values: Values) -> Values:
    """An operation that changes no numbers."""
    return values


def _placed(params: Any, values: Values) -> Values | None:
    """`jax.lax.with_sharding_constraint`, applied to the base."""
    weight = values[0]
    if is_quantized(weight.base):
        return None
    return [replace(weight, base=lax.with_sharding_constraint(weight.base, params["sharding"]))]


def _put(params: Any, values: Values) -> Values | None:
    """`jax.device_put`, applied to the base, for example to another memory."""
    if any(isinstance(value, Weight) and is_quantized(value.base) for value in values):
        return None

    def put(value: Any, there: Any) -> Any:
        if isinstance(value, Weight):
            return replace(value, base=jax.device_put(value.base, there))
        return jax.device_put(value, there)

    return list(map(put, values, params["devices"]))


def _held(params: Any, values: Values) -> Values:
    """`jax.lax.optimization_barrier`, applied to all inputs."""
    return lax.optimization_barrier(values)


def _stopped(params: Any, values: Values) -> Values:
    """`jax.lax.stop_gradient`, applied to all arrays of the weight."""
    return [jax.tree.map(lax.stop_gradient, values[0])]


def _varying(params: Any, values: Values) -> Values:
    """The cast that `jax.shard_map` inserts before products with tokens that vary by device."""
    axes = params["axes"]

    def vary(x: Any) -> Any:
        try:
            if hasattr(lax, "pcast"):
                return lax.pcast(x, axes, to="varying")
            return getattr(lax, "pvary")(x, axes)  # noqa: B009  JAX 0.8
        except ValueError:  # it does so already
            return x

    return [jax.tree.map(vary, values[0])]


def _one(out: Any) -> Values | None:
    return None if out is None else [out]


RULES: dict[str, Rule] = {
    "dot_general": _product,
    "ragged_dot_general": _ragged,
    "conv_general_dilated": _convolved,
    "gather": _looked_up,
    "transpose": _transposed,
    "convert_element_type": _cast,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeezed,
    "slice": _sliced,
    "dynamic_slice": _dynamically_sliced,
    "name": _kept,
    "device_put": _put,
    "copy": _kept,
    "copy_p": _kept,
    "sharding_constraint": _placed,
    "pvary": _varying,
    "stop_gradient": _stopped,
    "optimization_barrier": _held,
}
