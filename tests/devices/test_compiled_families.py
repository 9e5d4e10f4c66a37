"""Every family's programs as the TPU's own compiler makes them, without a TPU."""

import math
import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import FRoD

from ..families.module import Module
from ..families.table import SAMPLES
from . import compile_times
from .compiled import collectives, large, written
from .compilers import TPUS, compiled, device
from .layer import small
from .test_compiled import needs_compiler

MODULE = Module("linear", (256, 384), True)
SIZE = 256 * 384
KINDS = [kind for kind, sample in SAMPLES.items() if not sample.shaped]
# Kinds whose Δ, or its input, is written in float32: XLA fuses no scatter, product of many axes or
# Fourier transform with the sum, and FRoD and KaSA decompose the weight.
WRITES_COMPOSED = {
    "BOFT",
    "C3A",
    "DEFT",
    "FRoD",
    "GLoRA",
    "GraLoRA",
    "KaSA",
    "MiSS",
    "RandLoRA",
} | {
    "SHiRA",
    "SuperTuning",
    "Tokens",
    "WaveFT",
}
WRITES_FACTORED = {"FRoD", "GLoRA", "KaSA", "RandLoRA"}
QUICK = ("LoRA", "DoRA", "FRoD")  # of the tests with a compiler


def of_kinds(kinds: Any) -> list[Any]:
    """Returns parameters of a test; only a few are quick."""
    marks = {kind: () if kind in QUICK else (pytest.mark.thorough,) for kind in kinds}
    return [pytest.param(kind, marks=marks[kind]) for kind in kinds]


@cache
def adapter(kind: str) -> Adapter:
    """Returns an adapter of a family."""
    return Adapter({"a": small(SAMPLES[kind].draw(np.random.default_rng(1), MODULE))}, 0.7)


def base() -> dict[str, Any]:
    """Returns the shapes of the base."""
    out, into = MODULE.shape
    shapes = {"a.weight": (out, into), "a.bias": (out,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}


def tokens() -> Any:
    """Returns the shape of the tokens."""
    return jax.ShapeDtypeStruct((16, MODULE.shape[1]), jnp.bfloat16)


def forward(params: Any, x: Any) -> Any:
    """Runs the layer."""
    return x @ params["a.weight"].T + params["a.bias"][None]


def check(text: str) -> None:
    """Nothing on the host, nothing in float64, and nothing from other devices."""
    assert "callback" not in text and "f64[" not in text
    assert collectives(text) == []


@needs_compiler
@pytest.mark.parametrize("on", ["v5e", pytest.param("v6e", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", of_kinds(KINDS))
def test_composed(kind: str, on: str) -> None:
    """No float32 array of the weight's size is written where XLA can fuse it."""
    program = compiled(lambda p, a: jaxmix.compose(p, a), base(), adapter(kind), on=on)
    check(program.text)
    out, into = MODULE.shape
    assert bool(written(program.text, "f32", out * into)) == (kind in WRITES_COMPOSED)


@needs_compiler
@pytest.mark.parametrize("on", ["v5e", pytest.param("v6e", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", of_kinds(KINDS))
def test_factored(kind: str, on: str) -> None:
    """Each family's map stays apart from the weight."""

    def run(donated: None, params: Any, adapter: Any, x: Any) -> Any:
        return jaxmix.factored(forward, "factored")(jaxmix.attach(params, adapter), x)

    program = compiled(run, None, base(), adapter(kind), tokens(), on=on)
    check(program.text)
    out, into = MODULE.shape
    # For a v6e XLA fuses GLoRA's product with the weight into the tokens'.
    writes = WRITES_FACTORED - {"GLoRA"} if on == "v6e" else WRITES_FACTORED
    assert bool(written(program.text, "f32", out * into)) == (kind in writes)


def test_frod_has_no_lu_decomposition_on_a_tpu() -> None:
    """XLA unrolls it there: at 4096 inputs its program took minutes to compile."""
    update = small(SAMPLES["FRoD"].draw(np.random.default_rng(1), MODULE))
    assert isinstance(update, FRoD)
    params = {name: jnp.ones(leaf.shape, leaf.dtype) for name, leaf in base().items()}

    def text(platform: str) -> str:
        traced = jax.jit(jaxmix.compose).trace(params, Adapter({"a": update}))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    operations = "LuDecomposition", "getrf", "triangular_solve", "trsm"
    assert not [name for name in operations if name in text("tpu")]
    assert "getrf" in text("cpu")


# The most operations of a float32 product of factors that a TPU's compiler sees at once: one of
# 1024 × 4096 × 1024 takes it 10 s.
LARGEST_PRODUCT = 2**32
_SHAPE = r"tensor<([\dx]+)xf32>"
_PRODUCT = re.compile(rf"dot_general .*HIGHEST.* : \({_SHAPE}, {_SHAPE}\) -> {_SHAPE}")
# XLA unrolls these.
SLOW = re.compile(r"stablehlo.fft|LuDecomposition|stablehlo.cholesky.*tensor<\d{3,}x")


def largest_product(text: str) -> float:
    """Returns the multiplications of a program's largest float32 product, in loops or not."""
    shapes = (
        [math.prod(map(int, x.split("x"))) for x in found] for found in _PRODUCT.findall(text)
    )
    return max((math.prod(sizes) ** 0.5 for sizes in shapes), default=0)


@pytest.mark.parametrize("program", compile_times.PROGRAMS)
@pytest.mark.parametrize("kind", of_kinds(KINDS))
def test_nothing_compiles_for_long_on_a_tpu(kind: str, program: str) -> None:
    """At 1024 × 4096 no large product is outside of a loop, and no transform is XLA's own."""
    run, args = compile_times.PROGRAMS[program]
    traced = jax.jit(run).trace(*args, compile_times.adapter(kind))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert SLOW.findall(text) == []
    assert largest_product(text) < LARGEST_PRODUCT


@pytest.mark.parametrize("kind", ["FRoD", "SHiRA", "SuperTuning"])
def test_no_scatter_is_large_on_a_tpu(kind: str) -> None:
    """XLA sorts what it adds by position, and compiles a sort of 170,000 numbers for 13 s."""
    run, args = compile_times.PROGRAMS["compose"]
    traced = jax.jit(run).trace(*args, compile_times.adapter(kind))

    def counts(platform: str) -> list[int]:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = re.findall(r"\(tensor<[\dx]+xf32>, tensor<[\dx]+xi32>, tensor<(\d+)xf32>\)", text)
        return [int(count) for count in found]

    assert max(counts("cpu")) > 40_000 and 0 < max(counts("tpu")) <= 2**14


@needs_compiler
@pytest.mark.parametrize("layout", ["torch", "flax"])
@pytest.mark.parametrize("spec", [("x", None), (None, "x")])
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoHa", "LoKr", "IA3"])
def test_sharded_weights_are_not_gathered(kind: str, spec: tuple[Any, ...], layout: str) -> None:
    """On four chips only DoRA's norms are exchanged, if they cross the parts."""
    device("v5e")  # sets libtpu's environment
    found = topologies.get_topology_desc(platform="tpu", topology_name=TPUS["v5e"])
    mesh = Mesh(np.array(found.devices), ("x",))
    torch = layout == "torch"
    specs = {"weight": spec, "bias": (spec[0],)} if torch else {"kernel": spec, "bias": spec[1:]}
    places: Any = {f"a.{name}": NamedSharding(mesh, P(*part)) for name, part in specs.items()}
    shapes: Any = {
        name: jax.ShapeDtypeStruct(leaf.shape[:: 1 if torch else -1], leaf.dtype, sharding=place)
        for (name, place), leaf in zip(places.items(), base().values(), strict=True)
    }
    if not torch:
        shapes, places = ({"a": {k[2:]: v for k, v in x.items()}} for x in (shapes, places))
    replicated = NamedSharding(mesh, P())
    own = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=replicated),
        adapter(kind),
    )
    run = jax.jit(partial(jaxmix.compose, layout=layout), out_shardings=places)
    text = run.lower(shapes, own).compile().as_text() or ""
    assert "callback" not in text and "f64[" not in text
    assert large(text, SIZE // 8) == []
    assert kind == "DoRA" or collectives(text) == []
