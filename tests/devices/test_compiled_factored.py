"""factored's programs as the TPU's own compiler makes them, without a TPU."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.unmerged.attaching import is_factored

from .compilers import compiled, mix
from .test_compiled import needs_compiler

SHAPE = (14336, 4096)
PARAMS = {"a.weight": jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)}


def attached(params: Any, adapters: list[Adapter]) -> Any:
    """An attached tree with the norms that `attach` holds for known arrays."""
    return jax.tree.map(
        lambda leaf: leaf.with_norms() if is_factored(leaf) else leaf,
        jaxmix.attach(params, adapters),
        is_leaf=is_factored,
    )


@cache
def cycles(name: str, tokens: int) -> int:
    """The estimated cycles of a leaf's product on v5e."""
    x = jax.ShapeDtypeStruct((tokens, SHAPE[1]), jnp.bfloat16)

    def run(donated: None, leaves: Any, x: Any) -> Any:
        return jaxmix.factored(lambda p, x: x @ p["a.weight"].T)(leaves, x)

    leaves = jax.eval_shape(attached, PARAMS, mix(name, SHAPE))
    program = compiled(run, None, leaves, x, on="v5e")
    for operation in (" while(", " sort(", "callback", "f64["):
        assert operation not in program.text, operation
    return program.cycles


@needs_compiler
@pytest.mark.parametrize("name, tokens, bound", [("LoHa", 2048, 1.15), ("DoRA", 128, 2.4)])
def test_it_costs_about_as_much_as_lora(name: str, tokens: int, bound: float) -> None:
    """LoHa stays thin at many tokens. DoRA reads the norms that `attach` held.

    The norms are in a branch of the program, which is taken only if the arrays changed. With one
    leaf alone, only LoRA's program reads the weight ahead of time; over a layer, DoRA costs 1.06 of
    the base.
    """
    assert cycles(name, tokens) <= bound * cycles("LoRA", tokens)
