"""Two shortcuts within JAX, which halve what a small program costs the tests.

This is the only file that uses JAX's private modules. On a JAX that differs, nothing changes but
the time.

- JAX makes a context of MLIR for each program, which takes 5 ms, and 5 more to free it. The tests
  share one. It keeps the constants of its programs, so after some of them a new one is made.
- Since JAX 0.10 `jnp.asarray` compiles a program for each shape, which returns its argument. Here
  the array is transferred instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ["take_shortcuts"]

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


def _transferred(compile_and_run: Callable[..., Any]) -> Callable[..., Any]:
    """Transfers NumPy's arrays; everything else is as it was."""

    def stage(x: Any) -> Any:
        array = getattr(x, "val", x)  # JAX wraps it
        is_plain = type(array) is np.ndarray and not getattr(x, "weak_type", False)
        return jax.device_put(array) if is_plain else compile_and_run(x)

    return stage


def take_shortcuts() -> None:
    """Takes those that this version of JAX has."""
    try:
        from jax._src.interpreters import mlir

        mlir.make_ir_context = _shared(mlir.make_ir_context)
    except (ImportError, AttributeError):
        pass
    try:
        from jax._src.core import stage_p

        stage_p.def_impl(_transferred(stage_p.impl))
    except (ImportError, AttributeError):
        pass
