"""`compose` on eight devices: shardings, communication, and what each device computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.families import OFT, LoHa, LoRA, Together

from ..compiling import COMPILED, timed_events
from ..laws.draws import normal, tree
from .compiled import Collective, collectives, large, largest
from .layer import MODULE, PART, RNG, SIZE, UPDATES, params, small
from .spying import grid, placed, programs

# These families need the singular values of their leaf, or products with all of it.
WHOLE = {"KaSA", "FRoD"}
# Blocks that cross the parts' borders are computed whole; RandLoRA's bases, which all sites share,
# are larger than this leaf.
LARGER = {"C3A": 2 * PART, "RandLoRA": 2 * SIZE}


# ---------------------------------------------------------------- the checks themselves


def test_a_gather_is_seen() -> None:
    """The compiled text shows when a weight is gathered or moved, or Δ is computed whole."""
    mesh = grid()
    w = placed(np.ones((64, 96), np.float32), mesh, "x", "y")
    there = w.sharding

    def text(run: Any, *args: Any) -> str:
        return jax.jit(run, out_shardings=there).lower(*args).compile().as_text() or ""

    whole = NamedSharding(mesh, P())

    def gathers(w: Any) -> Any:
        return jnp.sort(jax.lax.with_sharding_constraint(w, whole), 1)

    assert large(text(gathers, w), PART) and largest(text(gathers, w)) == SIZE
    moves = text(
        lambda w: jax.lax.with_sharding_constraint(2 * w, NamedSharding(mesh, P(("x", "y")))) + 1, w
    )
    assert {one.kind for one in large(moves, PART)} == {"all-to-all"}
    summed = text(lambda w: w - jnp.sum(w, 1, keepdims=True), w)
    assert collectives(summed) == [Collective("all-reduce", 32)] and not large(summed, PART)
    b, a = np.ones((64, 2), np.float32), np.ones((2, 96), np.float32)

    def makes_it_whole(w: Any, b: Any, a: Any) -> Any:
        return w + jax.lax.with_sharding_constraint(b @ a, whole)

    assert not collectives(text(makes_it_whole, w, b, a))
    assert largest(text(makes_it_whole, w, b, a)) == SIZE


def test_asynchronous_ones_are_seen() -> None:
    """Of the asynchronous pairs that accelerators use, the start is counted."""
    text = """
  %ags = (f32[8,96]{1,0}, f32[64,96]{1,0}) all-gather-start(%p), dimensions={0}
  %agd = f32[64,96]{1,0:T(8,128)S(1)} all-gather-done(%ags)
  ROOT %ar = f32[] all-reduce(%x), to_apply=%add
  %rs = (bf16[2,4]{1,0}, bf16[2]{0}) reduce-scatter(%y, %z), dimensions={0}
"""
    assert collectives(text) == [
        Collective("all-gather", 8 * 96 + 64 * 96),
        Collective("all-reduce", 1),
        Collective("reduce-scatter", 10),
    ]


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoKr", "Tokens", "C3A", "RoAd", "KaSA", "FRoD"])
def test_a_family_stays_where_it_is(kind: str, monkeypatch: Any) -> None:
    """An eager `compose` moves no weight, and each device computes only its part of Δ."""
    leaves = params(grid(), ("x", "y"))
    with programs(monkeypatch) as seen:
        out = jaxmix.compose(leaves, Adapter({"a": UPDATES[kind]}, 0.7))
    texts = [one.as_text() for one in seen]
    held = max(map(largest, texts))
    moved = [one for text in texts for one in large(text, PART // 2)]
    if kind in WHOLE:
        assert moved and held >= SIZE  # otherwise it would not be an exception
        return
    # RoAd's pairs span the parts: each device exchanges its part twice.
    assert moved == [Collective("all-to-all", PART)] * (2 if kind == "RoAd" else 0)
    assert held <= LARGER.get(kind, PART)
    assert {n: x.sharding for n, x in out.items()} == {n: x.sharding for n, x in leaves.items()}


def test_nothing_else_is_compiled(monkeypatch: Any) -> None:
    """The recorded programs are all that run."""
    leaves = params(grid(), ("x", "y"))
    a, b = (np.ones(shape, np.float32) for shape in ((5, 96), (64, 5)))
    with programs(monkeypatch) as seen, timed_events() as events:
        jaxmix.compose(leaves, Adapter({"a": LoRA(a, b, 1.0)}))
    assert len(seen) == events[COMPILED] == 1


def test_every_family_within_jit() -> None:
    """Inside `jit`, where the shardings of leaves are unknown, XLA finds the same program.

    Nothing of a part's size is communicated, and nothing larger than a part is computed. Whole
    weights among the factors are sharded too.
    """
    mesh, kinds = grid(), [kind for kind in UPDATES if kind not in {*WHOLE, *LARGER, "RoAd"}]
    base = tree({kind: MODULE for kind in kinds}, 0, np.float32)
    there = {
        n: NamedSharding(mesh, P("x", "y") if x.ndim == 2 else P("x")) for n, x in base.items()
    }
    outlines = {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there[n]) for n, x in base.items()
    }

    def place(x: Any) -> Any:
        return placed(x, mesh, "x", "y") if np.shape(x) == (64, 96) else x

    adapter = jax.tree.map(place, Adapter({kind: UPDATES[kind] for kind in kinds}, 0.7))
    run = jax.jit(jaxmix.compose, out_shardings=there)
    text = run.lower(outlines, adapter).compile().as_text()
    assert large(text, PART // 2) == [] and largest(text) == PART


HEADS = Layout("mine", (Rule("a", "a.kernel", "d n h -> (n h) d"),))
LAYERS = Layout("mine", tuple(Rule(f"a{i}", "a.kernel", "i o -> o i", f":, {i}") for i in range(2)))
# A leaf's shape, its sharding, its layout, and (out, in) of its sites.
LEAVES: dict[str, Any] = {
    "heads": ((96, 8, 16), ("x", "y"), HEADS, (128, 96)),
    "heads over both": ((96, 8, 16), (None, ("x", "y")), HEADS, (128, 96)),
    "layers": ((96, 2, 64), ("x", None, "y"), LAYERS, (64, 96)),
    "a kernel": ((96, 64), ("y", "x"), "flax", (64, 96)),
    "a convolution": ((3, 3, 32, 16), (None, None, "y", "x"), "flax", (16, 288)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_that_lie_otherwise(name: str, monkeypatch: Any) -> None:
    """Kernels, heads, scanned layers and convolutions: nothing is gathered or computed whole."""
    shape, where, layout, (out, into) = LEAVES[name]
    leaf, part = placed(normal(RNG, *shape).astype(np.float32), grid(), *where), np.prod(shape) // 8
    lora = LoRA(normal(RNG, 2, into), normal(RNG, out, 2), 1.0, magnitude=1 + abs(normal(RNG, out)))
    update = small(Together((lora, OFT(normal(RNG, into // 8, 28, std=0.1)))))
    sites = ["a0", "a1"] if name == "layers" else ["a"]
    adapter = Adapter(dict.fromkeys(sites, update), 0.7)
    with programs(monkeypatch) as seen:
        got = jaxmix.compose({"a.kernel": leaf}, adapter, layout=layout)["a.kernel"]
    for one in seen:
        assert large(one.as_text(), part // 2) == [] and largest(one.as_text()) == part
    truth = jax.jit(lambda p: jaxmix.compose(p, adapter, layout=layout))(
        {"a.kernel": np.asarray(leaf)}
    )
    np.testing.assert_allclose(got, truth["a.kernel"], atol=1e-4)
    assert got.sharding == leaf.sharding


# ---------------------------------------------------------------- memory, precision, trees


def test_memory(monkeypatch: Any) -> None:
    """Besides leaf, result and factors, a device holds its part in float32 a few times."""
    mesh, n = grid(), RNG
    leaf = placed(np.asarray(n.normal(size=(512, 768)), jnp.bfloat16), mesh, "x", "y")
    part = 4 * leaf.size // 8

    def factors(*shape: int) -> Any:
        return np.asarray(n.normal(size=shape), np.float32)

    both = {
        "lora": LoRA(factors(8, 768), factors(512, 8), 1.0),
        "loha": LoHa(factors(512, 8), factors(8, 768), factors(512, 8), factors(8, 768), 1.0),
        "oft": OFT(0.1 * factors(96, 28)),
    }
    mixed = jaxmix.mix(*(Adapter({"a": u}, name=name) for name, u in both.items()))
    with programs(monkeypatch) as seen:
        jaxmix.compose({"a.weight": leaf}, mixed)
    (program,) = seen
    assert program.memory_analysis().temp_size_in_bytes < 4 * part
    assert largest(program.as_text()) == leaf.size // 8


def test_a_replaced_weight_is_given_in_parts(monkeypatch: Any) -> None:
    """No device holds the whole leaf, in both orientations."""
    whole = np.ones((64, 96), np.float32)
    for name, spec in (("weight", ("x", "y")), ("kernel", ("y", "x"))):
        leaf = placed(whole if name == "weight" else whole.T, grid(), *spec)
        with programs(monkeypatch) as seen:
            jaxmix.compose(
                {f"a.{name}": leaf}, Adapter({"a": jaxmix.families.Replace(2 * whole)}, 0.5)
            )
        assert [largest(one.as_text()) for one in seen] == [PART]
