"""The programs for accelerators, run on the CPU, give the results of the CPU's program."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.apply import accelerated, plan
from jaxmix.families import OFT, LoHa, LoKr, LoRA, Normed
from jaxmix.operators import LowRank, adding
from jaxmix.operators.backends import GPU, TPU, Backend, split

from ..laws.chains import ALL, STACKED
from ..laws.draws import Module, tree
from ..uncompiled import uncompiled

RNG = np.random.default_rng(0)
SHAPES = {"tall": (512, 256), "square": (256, 256)}
# Rotations are of the input side, in Flax's orientation of the output side.
CHAINS = {
    "LoRA": ("lora",),
    "four LoRAs": ("lora",) * 4,
    "LoHa": ("loha",),
    "LoKr": ("lokr",),
    "two LoKrs that differ": ("lokr", "lokr_other"),
    "LoRA, LoHa, LoKr": ("lora", "loha", "lokr"),
    "OFT": ("oft",),
    "OFT, LoRA, LoKr": ("oft", "lora", "lokr"),
    "LoHa, OFT, DoRA": ("loha", "oft", "dora"),
    "DoRA": ("dora",),
    "DoRA of LoKr": ("normed",),
}


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape, scale=0.1).astype(np.float32)


def made(kind: str, shape: tuple[int, int]) -> Any:
    """Returns an update of a kind for a weight (out, in)."""
    out, into = shape
    lokr = LoKr((normal(16, 16),), (normal(out // 16, 2), normal(2, into // 16)), 2.0)
    match kind:
        case "lora":
            return LoRA(normal(5, into), normal(out, 5), 2.0)
        case "dora":
            return LoRA(normal(5, into), normal(out, 5), 2.0, magnitude=1 + abs(normal(out)))
        case "loha":
            return LoHa(normal(out, 3), normal(3, into), normal(out, 3), normal(3, into), 2.0)
        case "lokr":
            return lokr
        case "lokr_other":
            return LoKr((normal(8, 32),), (normal(out // 8, into // 32),), 2.0)
        case "normed":
            return Normed(lokr, 1 + abs(normal(out)))
        case _:
            return OFT(normal(into // 32, 32 * 31 // 2))


@contextmanager
def compiled_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs what is traced inside as if it were lowered for another backend."""
    jax.clear_caches()
    with monkeypatch.context() as patch:
        for module in (plan, adding):
            patch.setattr(
                module, "by_platform", lambda cpu, accelerator, *xs: accelerator(backend, *xs)
            )
        # XLA's CPU has no product of bfloat16 matrices that is accumulated in float32.
        patch.setattr(Backend, "matmul", lambda _, b, a, dtype: b.astype(dtype) @ a.astype(dtype))
        yield
    jax.clear_caches()


# Weights are rotated slab by slab, as large ones are, or by one product.
WAYS = ("slabs", "one product")


def rotate(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses how the test's weights are rotated."""
    if way == "slabs":
        monkeypatch.setattr(accelerated, "SMALL", 0)


# Each backend, layout and way is in one of the three; the other combinations are thorough.
QUICK = {("tpu-torch", "slabs"), ("tpu-flax", "one product"), ("gpu-torch", "slabs")}
BACKENDS = {"tpu-torch": (TPU, "torch"), "tpu-flax": (TPU, "flax"), "gpu-torch": (GPU, "torch")}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.thorough)
        for pair in product(BACKENDS, WAYS)
    ],
)
def test_chains_match_float64(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 leaves agree with float64 to float32's noise, bfloat16 leaves to one rounding."""
    rotate(way, monkeypatch)
    backend, layout = BACKENDS[name]
    sites = {
        f"{name} {kind}".replace(",", "").replace(".", ""): (shape, word)
        for name, shape in SHAPES.items()
        for kind, word in CHAINS.items()
    }
    weights = {site: normal(*shape) for site, (shape, _) in sites.items()}
    adapters = [
        Adapter(
            {s: made(w[i], shape) for s, (shape, w) in sites.items() if i < len(w)}, 0.7, f"a{i}"
        )
        for i in range(4)
    ]

    def params(dtype: Any) -> Any:
        cast = {
            site: np.asarray(w).astype(jnp.bfloat16).astype(dtype) for site, w in weights.items()
        }
        if layout == "torch":
            return {f"{site}.weight": w for site, w in cast.items()}
        return {site: {"kernel": w.T} for site, w in cast.items()}

    with jax.enable_x64(True), uncompiled():
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), adapters)
        truth = jaxmix.compose(params(np.float64), wide, layout=layout)
        truth = jax.tree.map(np.asarray, truth)
    with compiled_for(backend, monkeypatch):
        run = jax.jit(lambda p, a: jaxmix.compose(p, a, layout=layout))
        loops = str(jax.make_jaxpr(run)(params(np.float32), adapters)).count("scan[")
        assert (loops > 0) == (way == "slabs")
        single, half = run(params(np.float32), adapters), run(params(jnp.bfloat16), adapters)
    for found, bound in ((single, 3e-6), (half, 2.0**-8)):
        for (path, got), expected in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(truth), strict=True
        ):
            error = np.abs(np.asarray(got, np.float64) - expected)
            worst = (error / (np.abs(expected) + np.abs(expected).mean())).max()
            assert worst <= bound, (path, worst)


@pytest.mark.parametrize(
    "backend", [TPU, pytest.param(GPU, marks=pytest.mark.thorough)], ids=["tpu", "gpu"]
)
def test_every_family(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All families give the results of the CPU's program."""
    module = Module("linear", (8, 16), True)
    updates = {
        kind: jax.tree.map(
            lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x,
            make(np.random.default_rng(1), module),
        )
        for kind, make in ALL.items()
        if kind not in STACKED
    }
    base = tree(dict.fromkeys(updates, module), 0, np.float32)
    with uncompiled():
        expected = jaxmix.compose(base, Adapter(updates, 0.7))
    with compiled_for(backend, monkeypatch):
        found = jax.jit(jaxmix.compose)(base, Adapter(updates, 0.7))
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_split_products_are_as_accurate_as_float32() -> None:
    """Split factors are as accurate as a float32 product; factors rounded once are not."""
    b, a = (RNG.normal(size=shape).astype(np.float32) for shape in ((64, 16), (16, 96)))
    exact = b.astype(np.float64) @ a.astype(np.float64)
    ready = jax.jit(TPU.prepared)(LowRank(jnp.asarray(b), jnp.asarray(a)))
    assert ready.a.dtype == jnp.bfloat16 and ready.rank == 6 * 16
    scale = np.abs(b).astype(np.float64) @ np.abs(a)
    product = ready.b.astype(np.float32) @ ready.a.astype(np.float32)
    assert (np.abs(product - exact) / scale).max() < 2.0**-20
    rounded = jnp.asarray(b).astype(jnp.bfloat16).astype(np.float32) @ a
    assert (np.abs(rounded - exact) / scale).max() > 2.0**-12
    parts = np.asarray(jax.jit(split, static_argnums=1)(b, (0, 1, 2)), np.float64)
    np.testing.assert_array_equal(parts.reshape(3, 64, 16).sum(0), b)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_match_the_cpu(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through slabs, products and views, gradients equal those of the CPU's program."""
    rotate(way, monkeypatch)
    shape = (256, 512)
    adapters = [
        Adapter({"a": made(kind, shape)}, 0.7, kind) for kind in ("lora", "loha", "lokr", "oft")
    ]
    adapters.append(Adapter({"b": made("dora", shape)}, 0.7, "dora"))
    params = {"a.weight": normal(*shape), "b.weight": normal(*shape)}
    target = normal(*shape)

    def loss(adapters: Any) -> Any:
        out = jaxmix.compose(params, adapters)
        return sum(jnp.sum((leaf - target) ** 2) for leaf in out.values())

    slope = jax.grad(loss, allow_int=True)
    expected = slope(adapters)
    with compiled_for(TPU, monkeypatch):
        found = jax.jit(slope)(adapters)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-2, atol=2e-2 * float(np.abs(y).max()))
