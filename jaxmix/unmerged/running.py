"""`factored`: runs any JAX function on leaves that keep base and factors separate."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, get_args

import jax
import numpy as np

from jaxmix.errors import AdapterError, DenseWeightWarning, UnsupportedError
from jaxmix.placement.names import leaf_names
from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.interpreter import run
from jaxmix.unmerged.leaf import Factored
from jaxmix.unmerged.uses import Report, Use, as_array, described, refusal, warning
from jaxmix.unmerged.weight import How, Weight

__all__ = ["check_how", "factored", "quietly_factored", "uses_without_form"]


def factored(fn: Callable[..., Any], how: How = "auto") -> Callable[..., Any]:
    """Runs a function on attached trees, with ``y = L((x R) Wᵀ) + x Δᵀ`` at each product.

    ``factored(fn)(attach(params, adapters), x)`` equals ``fn(compose(params, adapters), x)``. The
    function receives an array in place of each attached leaf, as under `jax.jit`. For products,
    convolutions and lookups, tokens are multiplied by base and operators separately. Any other use
    of a weight makes it dense; `jaxmix.explain` lists these uses with ``fn=``.

    Args:
        fn: Any function that JAX can trace, with Linen, NNX (a module as its argument, or with
            ``nnx.split`` and ``nnx.merge``), Equinox or plain JAX; its arguments are pytrees.
            Changes that it makes to a module are lost, as under `jax.jit`.
        how: ``"auto"`` chooses the cheaper form for each product by the number of tokens, and warns
            once (`jaxmix.errors.DenseWeightWarning`) if weights are made dense because a use has no
            factored form. ``"factored"`` never makes a weight dense: such a use is an error.
            ``"dense"`` makes the dense weight at each use.

    Returns:
        A function of the same arguments. It works under jit, grad, vmap, scan, remat, shard_map and
        eval_shape. Gradients with respect to its leaves are gradients of the base, the updates and
        the strengths.

    Raises:
        AdapterError: If ``how`` is invalid.
        UnsupportedError: With ``how="factored"``, if a use of a weight has no factored form; the
            error lists all of them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix import Adapter, attach
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)})
        >>> leaves = attach({"proj.kernel": jnp.zeros((3, 2))}, lora)
        >>> run = jax.jit(factored(lambda p, x: x @ p["proj.kernel"]))
        >>> run(leaves, jnp.ones((1, 3))).tolist()
        [[3.0, 3.0]]

    Source: docs/design.md.
    """
    check_how(how, "factored")
    warned: set[Use] = set()

    @wraps(fn)
    def on_leaves(*args: Any, **kwargs: Any) -> Any:
        uses: dict[Use, None] = {}
        report = _refuse if how == "factored" else uses.setdefault
        try:
            outs = _run(fn, how, args, kwargs, report)
        except _NoForm:
            all_uses = uses_without_form(fn, args, kwargs)
            raise UnsupportedError(refusal(all_uses)) from None
        if new := [use for use in uses if use not in warned]:
            warned.update(new)
            warnings.warn(warning(new), DenseWeightWarning, stacklevel=2)
        return outs

    return on_leaves


def check_how(how: Any, caller: str) -> None:
    """Checks how products are to be computed.

    Args:
        how: The user's argument.
        caller: The function that got it.

    Raises:
        AdapterError: If it is invalid.
    """
    if how not in get_args(How):
        known = ", ".join(map(repr, get_args(How)))
        raise AdapterError(f"{caller}: how is {how!r}, expected one of {known}.")


def quietly_factored(
    fn: Callable[..., Any], how: How = "factored", report: Report = lambda use: None
) -> Callable[..., Any]:
    """Runs a function on attached leaves like `factored`, without warnings.

    Args:
        fn: As in `factored`.
        how: How products are computed where there is a factored form.
        report: Called for each use that makes a weight dense for lack of a factored form.

    Returns:
        A function of the same arguments, which makes weights dense where it must.
    """
    return lambda *args, **kwargs: _run(fn, how, args, kwargs, report)


def uses_without_form(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Use, ...]:
    """Finds the uses of weights without a factored form, from shapes only.

    Args:
        fn: As in `factored`.
        args: Its arguments, arrays or `jax.ShapeDtypeStruct`.
        kwargs: Its keyword arguments.

    Returns:
        The uses, in the order of the program.
    """
    uses: dict[Use, None] = {}
    flat, tree = jax.tree.flatten((args, kwargs))
    at = [i for i, x in enumerate(flat) if _is_array(x) or isinstance(x, jax.ShapeDtypeStruct)]

    def shapes_only(*arrays: Any) -> Any:
        now = list(flat)
        for i, array in zip(at, arrays, strict=True):
            now[i] = array
        args, kwargs = tree.unflatten(now)
        return _run(fn, "factored", args, kwargs, uses.setdefault)

    jax.eval_shape(shapes_only, *(flat[i] for i in at))
    return tuple(uses)


class _NoForm(Exception):
    """A use without a factored form, although dense weights were forbidden."""


def _refuse(use: Use) -> None:
    raise _NoForm


def _run(fn: Callable[..., Any], how: How, args: Any, kwargs: Any, report: Report) -> Any:
    """The function's result for attached leaves."""
    flat, tree = jax.tree.flatten((args, kwargs), is_leaf=is_factored)
    if not any(map(is_factored, flat)):
        return fn(*args, **kwargs)
    flat = _weights(args, kwargs, how, report)
    at = [i for i, leaf in enumerate(flat) if _is_array(leaf)]

    def program(*arrays: Any) -> Any:
        now = list(flat)
        for i, array in zip(at, arrays, strict=True):
            now[i] = array
        args, kwargs = tree.unflatten(now)
        return fn(*args, **kwargs)

    jaxpr, shapes = jax.make_jaxpr(program, return_shape=True)(*(_seen(flat[i]) for i in at))
    outs = [as_array(out, report) for out in run(jaxpr, [flat[i] for i in at], report)]
    return jax.tree.structure(shapes).unflatten(outs)


def _weights(args: Any, kwargs: Any, how: How, report: Report) -> list[Any]:
    """The leaves of a function's arguments, with a weight for each attached leaf."""
    values = []
    for argument in (*args, *kwargs.values()):
        paths, _ = jax.tree_util.tree_flatten_with_path(argument, is_leaf=is_factored)
        names = leaf_names([path for path, _ in paths])
        for name, (_, leaf) in zip(names, paths, strict=True):
            values.append(_weight(name, leaf, how, report) if is_factored(leaf) else leaf)
    return values


def _weight(name: str, leaf: Factored, how: How, report: Report) -> Weight | jax.Array:
    """A leaf's value in a program: base and map, or the dense leaf if it has no separate map."""
    name = name or leaf.tags.sites[0]
    weight = leaf.apart(how, name)
    if isinstance(weight, Weight):
        return weight
    if not weight.is_vector and how != "dense":
        report(Use(name, described(leaf), weight.why))
    return leaf.dense()


def _is_array(x: Any) -> bool:
    return isinstance(x, Weight | jax.Array | np.ndarray)


def _seen(x: Any) -> Any:
    """What the function receives for an argument."""
    if not isinstance(x, Weight):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_quantized(x.base) else x.base
