"""Shortcuts within JAX, which halve what a small program costs the tests.

This is the only file that uses JAX's private modules. On a JAX that differs, nothing changes but
the time.

- JAX makes a context of MLIR for each program, which takes 5 ms, and 5 more to free it. The tests
  share one. It keeps the constants of its programs, so after some of them a new one is made.
- `jax.device_put` of a small array takes 90 microseconds. Called below its checks it takes 5.
- Programs can be run otherwise than by XLA, which tests/small_programs.py does.
- Since JAX 0.10 `jnp.asarray` compiles a program for each shape, which returns its argument. Here
  the array is transferred instead.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = [
    "CAN_RUN_PROGRAMS",
    "is_jax_function",
    "run_programs",
    "take_shortcuts",
    "transferred",
]

PROGRAMS_IN_A_CONTEXT = 200


def _shared(make: Callable[[], Any]) -> Callable[[], Any]:
    """Makes one context for many programs."""
    contexts: list[Any] = []

    def context() -> Any:
        if len(contexts) == PROGRAMS_IN_A_CONTEXT:
            contexts.clear()
        contexts.append(contexts[0] if contexts else make())
        return contexts[0]

    return context


def _transferring(compile_and_run: Callable[..., Any]) -> Callable[..., Any]:
    """Transfers NumPy's arrays; everything else is as it was."""

    def stage(x: Any) -> Any:
        array = getattr(x, "val", x)  # JAX wraps it
        if type(array) is not np.ndarray or getattr(x, "weak_type", False):
            return compile_and_run(x)
        is_kept = array.dtype.itemsize < 8 or jax.config.jax_enable_x64
        return transferred(array) if is_kept else jax.device_put(array)

    return stage


def _below_checks() -> Callable[[np.ndarray], jax.Array]:
    """Transfers an array to the default device without the checks of `jax.device_put`."""
    from jax._src.core import ShapedArray
    from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def put(x: np.ndarray) -> jax.Array:
        if jax.config.jax_default_device is not None:
            return jax.device_put(x)
        aval = ShapedArray(x.shape, x.dtype)
        return xla_client.batched_device_put(aval, sharding, [x], [device], False)

    assert not put(np.zeros(1, np.float32)).committed
    return put


@cache
def _put() -> Callable[[np.ndarray], jax.Array]:
    """The way to transfer arrays that this version of JAX has."""
    try:
        return _below_checks()
    except (ImportError, AttributeError, TypeError, AssertionError):
        return jax.device_put


def transferred(x: np.ndarray) -> jax.Array:
    """Returns an array on the default device, with the numbers of NumPy's.

    Args:
        x: The array. It may share its memory with the result. The gradient by integers, which has
            a dtype of its own, stays NumPy's, as in JAX.
    """
    return x if x.dtype == jax.dtypes.float0 else _put()(x)  # pyright: ignore[reportReturnType]


def is_jax_function(program: Any) -> bool:
    """Returns whether a program was traced from a function of JAX itself.

    Args:
        program: The program.
    """
    source = program.jaxpr.debug_info.func_filename
    return source is not None and Path(source).is_relative_to(Path(jax.__file__).parent)


# Other versions of JAX may call and return something else there.
CAN_RUN_PROGRAMS = jax.__version_info__[:2] == (0, 10)


def run_programs(run: Callable[[Any, Any, Any], list[Any] | None]) -> None:
    """Lets a function run the programs of compiled functions, outside of other programs.

    Args:
        run: The function of arguments, program and parameters. It returns the results, or None
            where XLA is to compile the program.
    """
    if not CAN_RUN_PROGRAMS:
        return
    from jax._src import pjit

    compile_and_run = pjit._pjit_call_impl_python

    def call(*args: Any, jaxpr: Any, **parameters: Any) -> Any:
        results = run(args, jaxpr, parameters)
        if results is None:
            return compile_and_run(*args, jaxpr=jaxpr, **parameters)
        return results, None, None, []

    pjit._pjit_call_impl_python = call


def take_shortcuts() -> None:
    """Takes those that this version of JAX has."""
    try:
        from jax._src.interpreters import mlir

        mlir.make_ir_context = _shared(mlir.make_ir_context)
    except (ImportError, AttributeError):
        pass
    try:
        from jax._src.core import stage_p

        stage_p.def_impl(_transferring(stage_p.impl))
    except (ImportError, AttributeError):
        pass
