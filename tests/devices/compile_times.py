"""The CPU time that the TPU's compiler takes for each family at one weight of usual size.

The updates are those that `jaxmix.init` creates by default, except for the sizes in `OPTIONS` and
for the families that it can't create.
"""

import time
from collections.abc import Callable
from functools import cache
from multiprocessing import TimeoutError, get_context
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmix
from jaxmix import Adapter
from jaxmix.families import AdaMSS, DiagOFT, LoRA, Delta, Normed, Rebase, Replace, Together, Tokens

from ..families.table import SAMPLES
from .compilers import compiled, update

__all__ = ["KINDS", "LIMIT", "PROGRAMS", "SHAPE", "TOKENS", "usual", "times"]

SHAPE = (1024, 4096)
TOKENS = 64
# A compilation that takes longer, in seconds of wall time, is stopped.
LIMIT = 120
ON = "v5e"
KINDS = [kind for kind, sample in SAMPLES.items() if not sample.shaped]
OPTIONS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 8, "boft_n_butterfly_factor": 2},
}


def array(*shape: int, dtype: Any = np.float32) -> Any:
    """Returns the shape of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def made(kind: str) -> Any:
    out, into = SHAPE
    match kind:
        case "Delta":
            return Delta(array(out, into))
        case "Replace":
            return Replace(array(out, into))
        case "Rebase":
            return Rebase(array(out, into))
        case "Together":
            return Together((Replace(bias=array(out)), update("lora", SHAPE)))
        case "DiagOFT":
            return DiagOFT(array(out // 32, 32, 32))
        case "Normed":
            return Normed(update("loha", SHAPE), array(out))
        case "AdaMSS":
            parts = [205, 205, 205, 205, 204]
            a, b = (array(1, 100) for _ in parts), (array(part, 1) for part in parts)
            return AdaMSS(tuple(a), tuple(b), array(100, into), array(out, dtype=np.int32))
        case "Tokens":
            return Tokens(array(16, into), array(16, dtype=np.int32))
        case "LoRA" | "DoRA" | "LoHa" | "LoKr" | "OFT":
            return update(kind.lower(), SHAPE)
        case _:
            return None


@cache
def usual(kind: str) -> Adapter:
    """Returns the shapes of an adapter of a family."""
    found = made(kind)
    if found is not None:
        return Adapter({"a": found}, 0.7)
    params = {"a.weight": jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)}

    def init(params: Any) -> Any:
        key = jax.random.key(0)
        return jaxmix.init(
            kind.lower(), params, key, target_modules=["a"], **OPTIONS.get(kind, {})
        )

    return jax.eval_shape(init, params)


def base() -> dict[str, Any]:
    shapes = {"a.weight": SHAPE, "a.bias": SHAPE[:1]}
    return {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}


def compose(kind: str, on: str = ON) -> Any:
    return compiled(lambda p, a: jaxmix.compose(p, a), base(), usual(kind), on=on)


def factored(kind: str, on: str = ON, how: str = "auto") -> Any:
    x = jax.ShapeDtypeStruct((TOKENS, SHAPE[1]), jnp.bfloat16)

    def run(donated: None, params: Any, adapter: Any, x: Any) -> Any:
        def forward(params, x):
            return x @ params["a.weight"].T + params["a.bias"][None]
        return jaxmix.factored(forward, how)(jaxmix.attach(params, adapter), x)

    return compiled(run, None, base(), usual(kind), x, on=on)


PROGRAMS = {"compose": compose, "factored": factored}


def warm() -> None:
    compiled(lambda x: x + 1, array(8, 128), on=ON)


def seconds(name: str, kind: str) -> float:
    usual(kind)
    before = time.process_time()
    PROGRAMS[name](kind)
    return time.process_time() - before
