"""`factored`: any JAX function on leaves that keep base and factors apart."""

from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

import jax
import numpy as np

from jaxmix.errors import AdapterError
from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.interpreter import run
from jaxmix.unmerged.weight import How, Weight

__all__ = ["factored"]


def factored(fn: Callable[..., Any], how: How = "auto") -> Callable[..., Any]:
    """The function on trees that `jaxmix.attach` made: ``y = L((x R) Wᵀ) + x Δᵀ`` at each product.

    ``factored(fn)(attach(params, adapters), x)`` equals ``fn(compose(params, adapters), x)``. The
    function sees an array in place of each such leaf, as under `jax.jit`; where it multiplies by
    one, convolves with it or looks its rows up, tokens go through base and operators apart. What
    has no such form takes the dense weight there; `jaxmix.explain` says which leaves, and why.

    Args:
        fn: any function that JAX can trace, of Linen, NNX (a module as its argument, or through
            ``nnx.split`` and ``nnx.merge``), Equinox or plain JAX; its arguments are pytrees. What
            it changes in a module does not come out, as under `jax.jit`.
        how: ``"auto"`` takes at each product what costs less for so many tokens, ``"factored"`` and
            ``"dense"`` force one of the two.

    Returns:
        A function of the same arguments, to be put under jit, grad, vmap, scan, remat, shard_map
        and eval_shape. Gradients with respect to its leaves are gradients of the base, the updates
        and the strengths.

    Raises:
        AdapterError: if ``how`` is none of the three.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix import Adapter, attach
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)})
        >>> leaves = attach({"proj.kernel": jnp.zeros((3, 2))}, lora)
        >>> run = jax.jit(factored(lambda p, x: x @ p["proj.kernel"]))
        >>> run(leaves, jnp.ones((1, 3))).tolist()
        [[3.0, 3.0]]

    Source: DESIGN.md, how a mix is computed.
    """
    if how not in get_args(How):
        known = ", ".join(map(repr, get_args(How)))
        raise AdapterError(f"factored: how is {how!r}, expected one of {known}.")

    @wraps(fn)
    def on_leaves(*args: Any, **kwargs: Any) -> Any:
        flat, tree = jax.tree.flatten((args, kwargs), is_leaf=is_factored)
        if not any(map(is_factored, flat)):
            return fn(*args, **kwargs)
        flat = [leaf.weight(how) if is_factored(leaf) else leaf for leaf in flat]
        at = [i for i, leaf in enumerate(flat) if _is_array(leaf)]

        def program(*arrays: Any) -> Any:
            now = list(flat)
            for i, array in zip(at, arrays, strict=True):
                now[i] = array
            args, kwargs = tree.unflatten(now)
            return fn(*args, **kwargs)

        made, shapes = jax.make_jaxpr(program, return_shape=True)(*(_seen(flat[i]) for i in at))
        outs = run(made, [flat[i] for i in at])
        outs = [out.dense() if isinstance(out, Weight) else out for out in outs]
        return jax.tree.structure(shapes).unflatten(outs)

    return on_leaves


def _is_array(x: Any) -> bool:
    return isinstance(x, Weight | jax.Array | np.ndarray)


def _seen(x: Any) -> Any:
    """What the function sees of an argument."""
    if not isinstance(x, Weight):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_quantized(x.base) else x.base
