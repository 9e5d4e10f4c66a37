"""`compose` compiled by the TPU's own compiler, without a TPU: passes over a leaf, and memory."""

import jax
import pytest

from .compilers import GOALS, Program, copied_bytes, estimated_cycles, has_tpu_compiler, ratio

SHAPE = (14336, 4096)
LEAF = 2 * SHAPE[0] * SHAPE[1]

needs_compiler = pytest.mark.skipif(
    not has_tpu_compiler(),
    reason="the TPU's compiler is missing; install it with pip install 'jaxmix-peft[tpu-compiler]'",
)


def check(program: Program) -> None:
    """Nothing on the host, nothing in float64, and no temporary array of half a leaf."""
    assert "callback" not in program.text and "f64[" not in program.text
    assert program.temporary < LEAF // 2


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("on", ["v5e", "v6e"])
@pytest.mark.parametrize("layout", ["torch", "flax"])
@pytest.mark.parametrize("name", GOALS)
def test_a_mix_costs_few_passes(name: str, layout: str, on: str) -> None:
    """The compiler estimates at most the goal's cycles, over those of ``w + 1``."""
    found, program = ratio(name, SHAPE, layout, on=on)
    check(program)
    assert found <= GOALS[name]


@needs_compiler
def test_lora_is_one_pass() -> None:
    """The same for one LoRA on v5e, quickly; the cycles of the float32 product were 1.24."""
    found, program = ratio("LoRA", SHAPE, "torch", on="v5e")
    check(program)
    assert found <= GOALS["LoRA"]


def test_loops_are_counted() -> None:
    """A loop's body counts as often as it runs."""
    text = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[2]{0} fusion(%p), backend_config={"estimated_cycles":"10"}
  %y = f32[4]{0} dynamic-update-slice(%p, %x, %i), backend_config={}
}

%limit (p: s32[]) -> pred[] {
  %most = s32[]{:T(128)} constant(16)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] fusion(%p), kind=kLoop, calls=%limit
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %once = f32[4]{0} fusion(%p), backend_config={"estimated_cycles":"5"}
  %many = (s32[], f32[4]{0}) while(%once), condition=%condition, body=%body
}
"""
    assert estimated_cycles(text) == 5 + 16 * 10
    assert copied_bytes(text) == 16 * 2 * 4
    assert jax.default_backend() == "cpu"  # this file's programs are never run
