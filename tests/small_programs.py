"""NumPy in place of XLA for the small programs that `jax.numpy` makes of its own functions.

`jnp.multiply` and most others are compiled functions: called outside of a program, each is compiled
for each shape, which takes some 20 ms. The tests call thousands. Where such a program consists of
operations that NumPy computes bit for bit like XLA (`by_numpy.EXACT`), NumPy runs it here.

Functions outside of JAX are always compiled: their programs are what tests are about.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .by_numpy import EXACT
from .jax_internals import is_jax_function, run_programs, transferred

__all__ = ["use_numpy_for_small_programs"]

# A longer program is rarely one that NumPy can run.
MOST_EQUATIONS = 12
_BY_NAME: dict[str, Callable[..., Any]] = {
    **{name.removesuffix("_p"): operation for name, operation in EXACT.items()},
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "unstack": lambda x, axis: list(np.moveaxis(x, axis, 0)),
}


def use_numpy_for_small_programs() -> None:
    """From now on NumPy runs them."""
    run_programs(_run)


def _run(args: Sequence[Any], program: Any, parameters: Mapping[str, Any]) -> list[Any] | None:
    """The results of a compiled function's program; None where XLA must compute them."""
    if not _is_small(program) or any(parameters["donated_invars"]):
        return None
    if any(variable.aval.weak_type for variable in program.jaxpr.outvars):
        return None
    values = [
        _value(x, variable.aval) for x, variable in zip(args, program.jaxpr.invars, strict=True)
    ]
    if any(value is None for value in values):
        return None
    with np.errstate(all="ignore"):
        results = _evaluated(program, values)
    return results and [transferred(np.array(x, order="C")) for x in results]


def _is_small(program: Any) -> bool:
    """Whether all operations are NumPy's, within a function of JAX itself."""
    equations = program.jaxpr.eqns
    if len(equations) > MOST_EQUATIONS or not is_jax_function(program):
        return False
    return all(
        _is_small(each.params["jaxpr"])
        if each.primitive.name == "jit"
        else each.primitive.name in _BY_NAME
        for each in equations
    )


def _value(x: Any, aval: Any) -> np.ndarray | None:
    """An argument's values; None for keys and for arrays on chosen devices."""
    if not isinstance(x, jax.Array | np.ndarray | int | float) or getattr(x, "committed", False):
        return None
    return np.asarray(x, aval.dtype) if isinstance(aval.dtype, np.dtype) else None


def _evaluated(program: Any, values: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The results of a program."""
    known = dict(zip(program.jaxpr.invars, values, strict=True))
    known |= dict(zip(program.jaxpr.constvars, map(np.asarray, program.consts), strict=True))

    def read(variable: Any) -> np.ndarray:
        return np.asarray(variable.val) if hasattr(variable, "val") else known[variable]

    for equation in program.jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        outs = _outs(equation, operands)
        if outs is None:
            return None
        known |= dict(zip(equation.outvars, outs, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars]


def _outs(equation: Any, operands: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The results of one operation, in the dtypes that XLA gives them."""
    if equation.primitive.name == "jit":
        return _evaluated(equation.params["jaxpr"], operands)
    result = _BY_NAME[equation.primitive.name](*operands, **equation.params)
    if result is None:
        return None
    results = result if isinstance(result, list) else [result]
    dtypes = [variable.aval.dtype for variable in equation.outvars]
    return results if [x.dtype for x in results] == dtypes else None
