"""The time that the TPU's compiler takes for each family, for one weight of a usual size.

The updates are those that `jaxmix.init` creates by default, except for some that have a usual size
here, and for those that it can't create.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from multiprocessing import TimeoutError, get_context
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmix
from jaxmix import Adapter
from jaxmix.families import AdaMSS, Delta, DiagOFT, Normed, Rebase, Replace, Together, Tokens

from ..families.table import SAMPLES
from .compilers import compiled, update

__all__ = ["KINDS", "LIMIT", "PROGRAMS", "adapter", "base", "compose", "factored", "measured"]

SHAPE = (1024, 4096)
TOKENS = 64
# A compilation is stopped after this many seconds.
LIMIT = 120
KINDS = [kind for kind, sample in SAMPLES.items() if not sample.shaped]
# PEFT's default is one factor, which has no permutation.
OPTIONS = {"BOFT": {"boft_block_size": 8, "boft_n_butterfly_factor": 2}}


def _array(*shape: int, dtype: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _update(kind: str) -> Any:
    """An update that `init` does not create, or not in this size; None for the others."""
    out, into = SHAPE
    match kind:
        case "LoRA" | "DoRA" | "LoHa" | "LoKr" | "OFT":
            return update(kind.lower(), SHAPE)
        case "AdaMSS":
            a, b = [_array(1, 128)] * 4, [_array(out // 4, 1)] * 4
            return AdaMSS(tuple(a), tuple(b), _array(128, into), _array(out, dtype=np.int32))
        case "Delta" | "Rebase" | "Replace":
            return {"Delta": Delta, "Rebase": Rebase, "Replace": Replace}[kind](_array(out, into))
        case "DiagOFT":
            return DiagOFT(_array(out // 32, 32, 32))
        case "Normed":
            return Normed(update("loha", SHAPE), _array(out))
        case "Together":
            return Together((Replace(bias=_array(out)), update("lora", SHAPE)))
        case "Tokens":
            return Tokens(_array(16, into), _array(16, dtype=np.int32))
        case _:
            return None


@cache
def adapter(kind: str) -> Adapter:
    """Returns the shapes of an adapter of a family."""
    if (made := _update(kind)) is not None:
        return Adapter({"a": made}, 0.7)

    def create(params: Any) -> Adapter:
        options = OPTIONS.get(kind, {})
        return jaxmix.init(kind.lower(), params, jax.random.key(0), target_modules=["a"], **options)

    return jax.eval_shape(create, {"a.weight": base()["a.weight"]})


def base() -> dict[str, Any]:
    """Returns the shapes of the base."""
    shapes = {"a.weight": SHAPE, "a.bias": SHAPE[:1]}
    return {name: _array(*shape, dtype=jnp.bfloat16) for name, shape in shapes.items()}


def compose(params: Any, adapter: Adapter) -> Any:
    """Merges an adapter."""
    return jaxmix.compose(params, adapter)


def factored(x: Any, params: Any, adapter: Adapter) -> Any:
    """Runs the layer with an adapter unmerged."""

    def forward(params: Any, x: Any) -> Any:
        return x @ params["a.weight"].T + params["a.bias"][None]

    return jaxmix.factored(forward)(jaxmix.attach(params, adapter), x)


# Each program, with its arguments besides the adapter.
PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "compose": (compose, (base(),)),
    "unmerged": (factored, (_array(TOKENS, SHAPE[1], dtype=jnp.bfloat16), base())),
}


def _warm_up() -> None:
    """Loads the compiler."""
    compiled(lambda x: x + 1, _array(8, 128), on="v5e")


def _seconds(kind: str, program: str) -> float:
    """The seconds of CPU time to trace and compile a program."""
    run, args = PROGRAMS[program]
    updates = adapter(kind)
    before = time.process_time()
    compiled(run, *args, updates, on="v5e")
    return time.process_time() - before


def measured(kinds: list[str]) -> Iterator[tuple[str, str, float | None]]:
    """Compiles the programs of families for a v5e, in another process.

    Args:
        kinds: The families.

    Yields:
        The family, the program, and the seconds of CPU time; None if they are more than `LIMIT`.
    """
    todo = [(kind, program) for kind in kinds for program in PROGRAMS]
    while todo:
        with closing(get_context("spawn").Pool(1, _warm_up)) as pool:
            pool.apply(_warm_up)
            while todo:
                kind, program = todo.pop(0)
                try:
                    yield kind, program, pool.apply_async(_seconds, (kind, program)).get(LIMIT)
                except TimeoutError:
                    pool.terminate()
                    yield kind, program, None
                    break
        pool.join()  # counts its CPU time as this process's
