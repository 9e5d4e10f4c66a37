"""`compose` compiled by the GPU's own compiler, without a GPU: traffic to memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix

from .compilers import Program, compiled, mix, ratio
from .gpu import has_gpu_compiler
from .traffic import kernels, traffic

SHAPE = (14336, 4096)
# The most bytes that kernels read and write, over those of the leaf, twice, and of the factors.
# Measured: 1.02 at most.
BOUND = 1.1

needs_compiler = pytest.mark.skipif(
    not has_gpu_compiler(), reason="the GPU's compiler is missing; `make test-all` installs it"
)


def check(program: Program) -> None:
    """Nothing on the host, and nothing in float64."""
    assert "callback" not in program.text and "f64[" not in program.text


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("layout", ["torch", "flax"])
@pytest.mark.parametrize("name", ["LoRA", "LoHa", "LoKr", "LoRA+LoHa+LoKr"])
def test_a_mix_is_one_pass(name: str, layout: str) -> None:
    """It reads and writes the leaf once, and holds no Δ."""
    found, program = ratio(name, SHAPE, layout, on="h100")
    check(program)
    assert found <= BOUND
    assert program.temporary < 2 * SHAPE[0] * SHAPE[1] // 16
    leaf = [kernel for kernel in kernels(program.text) if kernel.bytes > 4 * SHAPE[0] * SHAPE[1]]
    assert len(leaf) == 1


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "bound"), [("DoRA", 1.6), ("OFT", 3.2)])
def test_what_reads_the_weight_again_is_bounded(name: str, bound: float) -> None:
    """DoRA's norms read the leaf once more; a rotation's product is written and read."""
    found, program = ratio(name, SHAPE, "torch", on="h100")
    check(program)
    assert found <= bound


@needs_compiler
@pytest.mark.thorough
def test_gradients_read_the_weights_few_times() -> None:
    """Those of LoRA's factors do not read the weight's once for each rank."""
    tokens = jax.ShapeDtypeStruct((2048, SHAPE[1]), jnp.bfloat16)
    params = {"a.weight": jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)}

    def slopes(donated: None, adapters: object, params: object, x: jax.Array) -> object:
        def loss(adapters: object) -> jax.Array:
            y = x @ jaxmix.compose(params, adapters)["a.weight"].T
            return jnp.sum(y.astype(np.float32) ** 2)

        return jax.grad(loss)(adapters)

    program = compiled(slopes, None, mix("LoRA", SHAPE), params, tokens, on="h100")
    check(program)
    # Measured: 5.3 passes over the leaf; with the factors' columns one by one they were 19.
    assert program.traffic < 6 * 4 * SHAPE[0] * SHAPE[1]


def test_slices_within_a_kernel_and_branches_are_counted() -> None:
    """A column takes 32 bytes of each row; of a conditional the cheapest branch counts."""
    text = """
%ends (p: bf16[64,40]) -> bf16[104] {
  %p = bf16[64,40]{1,0} parameter(0)
  %row = bf16[1,40]{1,0} slice(%p), slice={[0:1], [0:40]}
  %column = bf16[64,1]{1,0} slice(%p), slice={[0:64], [0:1]}
  ROOT %out = bf16[104]{0} concatenate(%row, %column), dimensions={0}
}

%kept (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %same = f32[64]{0} copy(%x)
}

%anew (w: f32[64,40]) -> f32[64] {
  %w = f32[64,40]{1,0} parameter(0)
  ROOT %new = f32[64]{0} reduce(%w)
}

ENTRY %main (w: bf16[64,40], n: f32[64], v: f32[64,40], is: pred[]) -> f32[64] {
  %w = bf16[64,40]{1,0} parameter(0)
  %n = f32[64]{0} parameter(1)
  %v = f32[64,40]{1,0} parameter(2)
  %is = pred[] parameter(3)
  %mark = bf16[104]{0} fusion(%w), kind=kLoop, calls=%ends
  %one = f32[64]{0} conditional(%is, %n, %v), true_computation=%kept, false_computation=%anew
  ROOT %two = f32[64]{0} conditional(%is, %v, %n), branch_computations={%anew, %kept}
}
"""
    found = {kernel.name: kernel.bytes for kernel in kernels(text)}
    assert found == {"mark": 80 + 64 * 32 + 208, "same": 512}
    assert traffic(text) == sum(kernel.bytes for kernel in kernels(text)) == 2336 + 2 * 512


def test_traffic_is_counted() -> None:
    """A slice takes at least 32 bytes, a change in place its own, a loop those of all its runs."""
    text = """
%part (p: f32[64,4], i: s32[]) -> f32[1,4] {
  %p = f32[64,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,4}
}

%change (p: f32[64,4], x: f32[1,4], i: s32[]) -> f32[64,4] {
  %p = f32[64,4]{1,0} parameter(0)
  %x = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[64,4]{1,0} dynamic-update-slice(%p, %x, %i, %zero)
}

%body (all: (s32[], f32[64,4])) -> (s32[], f32[64,4]) {
  %all = (s32[], f32[64,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%all), index=0
  %p = f32[64,4]{1,0} get-tuple-element(%all), index=1
  %cut = f32[1,4]{1,0} fusion(%p, %i), kind=kLoop, calls=%part
  %set = f32[64,4]{1,0} fusion(%p, %cut, %i), kind=kLoop, calls=%change
  ROOT %out = (s32[], f32[64,4]{1,0}) tuple(%i, %set)
}

ENTRY %main (w: bf16[64,4]) -> f32[64,4] {
  %w = bf16[64,4]{1,0} parameter(0)
  %wide = f32[64,4]{1,0:T(8,128)} convert(%w)
  %near = f32[64,4]{1,0:T(8,128)S(1)} copy(%wide)
  %start = (s32[], f32[64,4]{1,0}) tuple(%i, %wide)
  %end = (s32[], f32[64,4]{1,0}) while(%start), body=%body, backend={"known_trip_count":{"n":"64"}}
  ROOT %out = f32[64,4]{1,0} get-tuple-element(%end), index=1
}
"""
    found = {kernel.name: kernel.bytes for kernel in kernels(text)}
    # Memory near the kernels, S(1), is free.
    assert found == {
        "wide": 512 + 1024,
        "near": 1024,
        "cut": 64 * (32 + 16 + 4),
        "set": 64 * (16 + 16 + 4),
    }
    assert traffic(text) == sum(found.values())
