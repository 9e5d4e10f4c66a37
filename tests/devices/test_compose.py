"""`compose` over eight devices: where leaves lie, what is moved, and what each device makes."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import BOFT, OFT, LoHa, LoRA, RoAd
from jaxmix.families.boft import butterfly

from ..laws.draws import Module, normal, tree
from ..laws.test_every_family import ALL, STACKED
from .compiled import Collective, collectives, large, largest
from .spying import flat, grid, placed, programs

# A leaf, and what eight devices hold of it each.
MODULE = Module("linear", (64, 96), True)
SIZE = 64 * 96
PART = SIZE // 8
# These families take the singular values of their leaf, or products with all of it.
WHOLE = {"KaSA", "FRoD"}
# Blocks that do not end where parts do are made up to their own ends; RandLoRA's bases, which all
# sites share, are larger than this leaf.
LARGER = {"C3A": 2 * PART, "RandLoRA": 2 * SIZE}
RNG = np.random.default_rng(3)


def small(update: Any) -> Any:
    """With floats in float32, as a file has them."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32) if _is_float(x) else x, update)


def _is_float(x: Any) -> bool:
    return np.asarray(x).dtype.kind == "f"


UPDATES = {
    kind: small(make(np.random.default_rng(1), MODULE))
    for kind, make in ALL.items()
    if kind not in STACKED
}
# Rotations of blocks that end where parts do, and of others.
TURNS: dict[str, Any] = {
    "OFT, blocks of 12": OFT(normal(RNG, 8, 66, std=0.1)),
    "OFT, blocks of 48": OFT(normal(RNG, 2, 48 * 47 // 2, std=0.1)),
    "OFT, one block for all": OFT(normal(RNG, 1, 28, std=0.1)),
    "BOFT of inputs": BOFT(normal(RNG, 2, 12, 8, 8, std=0.1), normal(RNG, 64), butterfly(2, 12, 8)),
    "BOFT of outputs": BOFT(
        normal(RNG, 2, 8, 8, 8, std=0.1), None, butterfly(2, 8, 8), on_output=True
    ),
    "RoAd, pairs apart": RoAd(normal(RNG, 32), normal(RNG, 32), 1, 64),
}


def params(mesh: jax.sharding.Mesh, spec: Any, dtype: Any = np.float32) -> dict[str, jax.Array]:
    """A layer on the mesh."""
    base = tree({"a": MODULE}, 0, dtype)
    return {
        "a.weight": placed(base["a.weight"], mesh, *spec),
        "a.bias": placed(base["a.bias"], mesh, spec[0]),
    }


# ---------------------------------------------------------------- the checks themselves


def test_a_gather_is_seen() -> None:
    """What would gather a weight, move it, or make Δ whole is told by its compiled text."""
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
    """As accelerators have them: of a pair that starts and ends, the start counts."""
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
    """What an eager `compose` runs moves no weight, and no device makes more of Δ than its part."""
    leaves = params(grid(), ("x", "y"))
    with programs(monkeypatch) as seen:
        out = jaxmix.compose(leaves, Adapter({"a": UPDATES[kind]}, 0.7))
    texts = [one.as_text() for one in seen]
    held = max(map(largest, texts))
    moved = [one for text in texts for one in large(text, PART // 2)]
    if kind in WHOLE:
        assert moved and held >= SIZE  # or it is no exception
        return
    # RoAd's pairs go across the parts: each device gives and gets its part, there and back.
    assert moved == [Collective("all-to-all", PART)] * (2 if kind == "RoAd" else 0)
    assert held <= LARGER.get(kind, PART)
    assert {n: x.sharding for n, x in out.items()} == {n: x.sharding for n, x in leaves.items()}


def test_nothing_else_is_compiled(monkeypatch: Any) -> None:
    """The programs that are looked at are all that run."""
    count: list[str] = []
    monitoring.register_event_duration_secs_listener(lambda event, _, **__: count.append(event))
    leaves = params(grid(), ("x", "y"))
    a, b = (np.ones(shape, np.float32) for shape in ((5, 96), (64, 5)))
    count.clear()
    with programs(monkeypatch) as seen:
        jaxmix.compose(leaves, Adapter({"a": LoRA(a, b, 1.0)}))
    compiled = [event for event in count if event.endswith("backend_compile_duration")]
    assert len(seen) == len(compiled) == 1


def test_every_family_within_jit() -> None:
    """As one program, whose leaves nobody can ask where they lie: XLA finds the same by itself.

    Nothing of a part's size is moved, and nothing larger than a part is made. Whole weights among
    the factors are in parts as well.
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


# ---------------------------------------------------------------- rotations


@cache
def alone(kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What one device makes of the layer in float64, for each kind by itself."""
    updates = {**TURNS, **{kind: ALL[kind](np.random.default_rng(1), MODULE) for kind in UPDATES}}
    layer = tree({"a": MODULE}, 0)
    base = {f"{kind}{name[1:]}": leaf for kind in kinds for name, leaf in layer.items()}
    adapter = Adapter({kind: updates[kind] for kind in kinds}, 0.7)
    return jax.tree.map(np.asarray, jax.jit(jaxmix.compose)(base, adapter))


SPECS = {
    "rows": (flat, ("x", None)),
    "columns": (flat, (None, "x")),
    "both": (grid, ("x", "y")),
    "both on one": (grid, (None, ("y", "x"))),
}
# Which rotations are tried where: some that go across parts, and some that do not.
TRIED = {
    "rows": ("OFT, blocks of 48", "BOFT of outputs"),
    "columns": ("OFT, blocks of 12", "OFT, one block for all"),
    "both": tuple(TURNS),
    "both on one": ("OFT, blocks of 12", "BOFT of inputs", "BOFT of outputs"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_rotations(spec: str, monkeypatch: Any) -> None:
    """In float64 what one device gives; moved is nothing, or each part once there and once back."""
    make, where = SPECS[spec]
    with jax.enable_x64(True):
        leaves = params(make(), where, np.float64)
        truth = alone(tuple(TURNS))
        for kind in TRIED[spec]:
            adapter = Adapter({"a": TURNS[kind]}, 0.7)
            with programs(monkeypatch) as seen:
                out = jaxmix.compose(leaves, adapter)
            moved = [one for p in seen for one in large(p.as_text(), PART // 2)]
            assert moved == [Collective("all-to-all", PART)] * (2 * _goes_across(kind, where)), kind
            for name, leaf in out.items():
                wanted = truth[name.replace("a.", f"{kind}.")]
                assert np.abs(np.asarray(leaf) - wanted).max() < 1e-12, kind
                assert leaf.sharding == leaves[name].sharding


def _goes_across(kind: str, where: tuple[Any, Any]) -> bool:
    """Whether a rotation's blocks go across the parts of its side."""
    rows, cols = where
    if kind in ("BOFT of outputs", "RoAd, pairs apart"):
        return rows is not None
    if cols is None:
        return False
    parts = 4 if cols == "y" else 8
    return {"OFT, blocks of 12": False, "OFT, one block for all": parts == 8}.get(kind, True)


@pytest.mark.parametrize("kind", ["OFT, blocks of 48", "RoAd, pairs apart"])
def test_rotations_on_explicit_axes_within_jit(kind: str) -> None:
    """There the type of a traced leaf says where it lies, so nothing is gathered within jit too."""
    leaves = params(grid(AxisType.Explicit), ("x", "y"))
    adapter = Adapter({"a": small(TURNS[kind])}, 0.7)
    compiled = jax.jit(jaxmix.compose).lower(leaves, adapter).compile()
    moved = large(compiled.as_text(), PART // 2)
    assert moved == [Collective("all-to-all", PART)] * 2
    alone = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    truth = jaxmix.compose(alone, adapter)["a.weight"]
    np.testing.assert_allclose(compiled(leaves, adapter)["a.weight"], truth, atol=1e-5)


# ---------------------------------------------------------------- memory, precision, trees


def test_memory(monkeypatch: Any) -> None:
    """Beside leaf, result and factors a device holds its part in float32, a few times."""
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


@pytest.mark.parametrize("spec", ["both", "columns"])
def test_dora_and_others_across_parts(spec: str) -> None:
    """Norms are those of whole rows; in float64 to 1e-12, in float32 to 1e-5."""
    kinds = ("DoRA", "Normed", "HiRA", "HRA", "OFT", "IA3", "Replace", "SHiRA", "LoKr")
    make, where = SPECS[spec]
    with jax.enable_x64(True):
        truth = alone(kinds)
        for dtype, bound in ((np.float64, 1e-12), (np.float32, 1e-5)):
            leaves = params(make(), where, dtype)
            for kind in kinds if dtype is np.float64 and spec == "both" else ("DoRA", "HRA"):
                exact = ALL[kind](np.random.default_rng(1), MODULE)
                update = UPDATES[kind] if dtype is np.float32 else exact
                out = jaxmix.compose(leaves, Adapter({"a": update}, 0.7))
                for name, leaf in out.items():
                    wanted = truth[name.replace("a.", f"{kind}.")]
                    assert np.abs(np.asarray(leaf) - wanted).max() < bound * np.abs(wanted).max()


def test_a_replaced_weight_is_given_in_parts(monkeypatch: Any) -> None:
    """And so it lies nowhere whole, in both orientations."""
    whole = np.ones((64, 96), np.float32)
    for name, spec in (("weight", ("x", "y")), ("kernel", ("y", "x"))):
        leaf = placed(whole if name == "weight" else whole.T, grid(), *spec)
        with programs(monkeypatch) as seen:
            jaxmix.compose(
                {f"a.{name}": leaf}, Adapter({"a": jaxmix.families.Replace(2 * whole)}, 0.5)
            )
        assert [largest(one.as_text()) for one in seen] == [PART]
