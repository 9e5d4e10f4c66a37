"""Affine maps: the monoid's laws, folding, and what folding costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import FrozenInstanceError
from functools import reduce
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmix.affine import AffineMap, Base, fold, identity, shift
from jaxmix.errors import ShapeError
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hadamard,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Product,
    Sparse,
    Sum,
    Zero,
    add,
)

OUT, IN = SHAPE = (6, 8)
Draw = Callable[..., jax.Array]
Chain = Sequence[AffineMap]


def _rank(draw: Draw) -> LowRank:
    return LowRank(draw(OUT, 2), draw(2, IN))


def _rotation(draw: Draw) -> AffineMap:
    return AffineMap(Identity(OUT), BlockDiagonal(draw(2, 4, 4), 1), Zero(*SHAPE))


def _sparse(draw: Draw) -> Sparse:
    places = jnp.array([[0, 5, 5, 2], [7, 1, 1, 0]])
    return Sparse(draw(4), places, *SHAPE)


# What the families make: one map of every kind.
KINDS: dict[str, Callable[[Draw], AffineMap]] = {
    "lora": lambda draw: shift(_rank(draw)),
    "loha": lambda draw: shift(Hadamard(_rank(draw), _rank(draw))),
    "lokr": lambda draw: shift(Kronecker(draw(2, 4), draw(3, 2))),
    "shira": lambda draw: shift(_sparse(draw)),
    "dense": lambda draw: shift(Dense(draw(*SHAPE))),
    "both": lambda draw: shift(add(_rank(draw), Kronecker(draw(3, 2), draw(2, 4)))),
    "oft": _rotation,
    "oft_other": lambda draw: AffineMap(
        Identity(OUT), BlockDiagonal(draw(1, 2, 2), 4), Zero(*SHAPE)
    ),
    "dora": lambda draw: AffineMap(Diagonal(draw(OUT)), Identity(IN), _rank(draw)),
    "embedding_dora": lambda draw: AffineMap(Identity(OUT), Diagonal(draw(IN)), _rank(draw)),
    "replace": lambda draw: AffineMap(Diagonal(draw(OUT)), Identity(IN), Dense(draw(*SHAPE))),
    "left_blocks": lambda draw: AffineMap(
        BlockDiagonal(draw(2, 3, 3), 1), Identity(IN), Sum((_sparse(draw), Dense(draw(*SHAPE))))
    ),
    "forgets": lambda draw: AffineMap(Zero(OUT, OUT), Identity(IN), Dense(draw(*SHAPE))),
    "identity": lambda draw: identity(SHAPE),
}


def made(kind: str, seed: int = 0) -> AffineMap:
    """A map of a kind."""
    rng = np.random.default_rng([seed, *map(ord, kind)])
    return KINDS[kind](lambda *shape: jnp.asarray(rng.normal(size=shape)))


def word_of(*kinds: str) -> list[AffineMap]:
    """One map a kind, all different."""
    return [made(kind, i) for i, kind in enumerate(kinds)]


def naive(chain: Chain, w: np.ndarray) -> np.ndarray:
    """The maps one after another, densely."""
    for map_ in chain:
        left, right, delta = (np.asarray(x.dense()) for x in (map_.left, map_.right, map_.shift))
        w = left @ w @ right.T + delta
    return w


def run(steps: Chain, w: Any) -> jax.Array:
    """The maps one after another, as they run."""
    return reduce(lambda x, step: step(x), steps, jnp.asarray(w))


def cost(steps: Chain) -> int:
    """What a word costs on a dense weight."""
    return sum(step.flops() for step in steps)


def close(found: Any, expected: Any) -> None:
    """Equal to float64 noise."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=1e-12)


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """Everything here is compared in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compiling is what these tests spend their time on: not optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def w() -> np.ndarray:
    """A weight (out, in)."""
    return np.random.default_rng(1).normal(size=SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_alone(kind: str, w: np.ndarray) -> None:
    """A map, its transpose, the identity on either side."""
    map_ = made(kind)
    assert map_.shape == SHAPE
    assert map_.T.shape == SHAPE[::-1]
    expected = naive([map_], w)
    close(map_(jnp.asarray(w)), expected)
    close(map_.T(jnp.asarray(w.T)), expected.T)
    close(map_.T.T(jnp.asarray(w)), expected)
    for same in (map_.after(identity(SHAPE)), identity(SHAPE).after(map_)):
        close(same(jnp.asarray(w)), expected)
        assert jax.tree.structure(same) == jax.tree.structure(map_)
    assert map_.is_shift == (kind in ("lora", "loha", "lokr", "shira", "dense", "both", "identity"))
    assert map_.flops() >= 0


@pytest.mark.parametrize("left", KINDS)
def test_pairs(left: str, w: np.ndarray) -> None:
    """Composed and folded: every pair of kinds."""
    chains = [word_of(left, right) for right in KINDS]

    @jax.jit
    def found(chains: list[list[AffineMap]]) -> list[tuple[jax.Array, ...]]:
        x = jnp.asarray(w)
        results = []
        for first, second in chains:
            results.append((second.after(first)(x), run(fold([first, second]), x)))
        return results

    for chain, results in zip(chains, found(chains), strict=True):
        for result in results:
            close(result, naive(chain, w))


@settings(max_examples=20)
@given(st.lists(st.sampled_from(list(KINDS)), min_size=3, max_size=3))
def test_compose_is_associative(kinds: list[str]) -> None:
    """As maps, and as structures of the same cost."""
    with jax.enable_x64(True):
        a, b, c = word_of(*kinds)
        early, late = c.after(b.after(a)), c.after(b).after(a)
        w = np.random.default_rng(2).normal(size=SHAPE)
        close(early(jnp.asarray(w)), naive([a, b, c], w))
        close(late(jnp.asarray(w)), naive([a, b, c], w))


@settings(max_examples=30)
@given(st.lists(st.sampled_from(list(KINDS)), max_size=6))
def test_fold_is_the_word(kinds: list[str]) -> None:
    """Of any length: the same map, no dearer, and all its low rank in the last step."""
    with jax.enable_x64(True):
        chain = word_of(*kinds)
        w = np.random.default_rng(3).normal(size=SHAPE)
        steps = jax.jit(lambda chain: fold(chain))(chain)
        close(run(steps, w), naive(chain, w))
        assert cost(steps) <= cost(chain)
        assert len(steps) <= len(chain)
        assert not any(LowRank in _kinds(step.shift) for step in steps[:-1])
        assert sum(LowRank in _kinds(step.shift) for step in steps) <= 1
        assert not any(step.is_shift and isinstance(step.shift, Zero) for step in steps)
        assert not any(Product in _kinds(step.shift) for step in steps)


@settings(max_examples=10)
@given(st.lists(st.sampled_from(list(KINDS)), max_size=3), st.lists(st.sampled_from(list(KINDS))))
def test_fold_of_folds(left: list[str], right: list[str]) -> None:
    """A folded word folds on: what is folded in parts is the whole."""
    with jax.enable_x64(True):
        chain = word_of(*left, *right[:3])
        w = np.random.default_rng(4).normal(size=SHAPE)
        folded = fold([*fold(chain[: len(left)]), *fold(chain[len(left) :])])
        close(run(folded, w), naive(chain, w))
        assert cost(folded) <= cost(chain)


def _kinds(delta: Operator) -> set[type]:
    return {type(term) for term in (delta.terms if isinstance(delta, Sum) else (delta,))}


def test_of_nothing() -> None:
    assert fold([]) == ()
    assert fold([identity(SHAPE)] * 3) == ()


def dots(steps: Chain) -> list[tuple[int, ...]]:
    """The sizes of the matrix products that make dense matrices, from the traced program."""
    jaxpr = jax.make_jaxpr(lambda steps, w: run(steps, w))(tuple(steps), jnp.ones(SHAPE))
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = eqn.invars[0].aval.shape[contracted[0]]
            found.append((*eqn.outvars[0].aval.shape, inner))
    return sorted(found)


@pytest.mark.parametrize("order", sorted(set(permutations(["lora", "lora", "loha", "loha"]))))
def test_kinds_apart_cost_what_kinds_together_cost(order: tuple[str, ...]) -> None:
    """PEFT advises to add equal types consecutively; folding needs no such advice."""
    together = fold(word_of("lora", "lora", "loha", "loha"))
    steps = fold(word_of(*order))
    assert cost(steps) == cost(together) < cost(word_of(*order))
    assert len(steps) == 1
    # One product of rank 2 + 2 for both LoRAs, and two of rank 2 for each LoHa.
    assert dots(steps) == dots(together) == [(*SHAPE, 2)] * 4 + [(*SHAPE, 4)]
    (step,) = steps
    assert isinstance(step.shift, Sum) and len(step.shift.terms) == 3


def test_low_rank_passes_a_rotation() -> None:
    """LoRA, OFT, LoRA is one rotation and one low-rank term."""
    chain = word_of("lora", "oft", "lora")
    (step,) = fold(chain)
    assert isinstance(step.shift, LowRank) and step.shift.rank == 4
    assert isinstance(step.right, BlockDiagonal)
    assert cost([step]) == cost(fold(word_of("oft", "lora", "lora"))) < cost(chain)


@pytest.mark.parametrize(
    ("kinds", "steps"),
    [
        # Rotations meet where nothing that they would make dense stands between.
        (("oft", "oft", "loha"), 1),
        (("oft", "lora", "oft"), 1),
        (("oft", "oft_other"), 1),
        (("loha", "oft", "loha"), 2),
        (("loha", "oft", "oft_other", "loha"), 2),
        (("lokr", "lora", "oft", "shira", "lora", "loha"), 2),
        # The rotation is for the weight with all that was added to it: once, not twice.
        (("dense", "oft"), 2),
        (("replace", "oft"), 2),
        # Diagonals let sparse and elementwise terms through, and no others.
        (("loha", "dora", "shira", "embedding_dora", "loha"), 1),
        (("dense", "dora"), 1),
        (("lokr", "dora"), 2),
        (("lokr", "lora", "identity", "shira", "loha"), 1),
    ],
    ids=str,
)
def test_how_many_steps(kinds: tuple[str, ...], steps: int, w: np.ndarray) -> None:
    folded = fold(word_of(*kinds))
    assert len(folded) == steps
    close(run(folded, w), naive(word_of(*kinds), w))


def test_a_rotation_turns_once() -> None:
    """Composition into one map gathers what it can't carry under one product."""
    oft, added = made("oft"), made("loha").after(made("lokr"))
    both = oft.after(made("lora").after(added))
    assert isinstance(both.shift, Sum)
    assert [type(term) for term in both.shift.terms] == [LowRank, Product]


def test_cost_of_a_map() -> None:
    """Multiplications and additions, counted by hand."""
    assert identity(SHAPE).flops() == 0
    assert made("lora").flops() == 2 * 2 * OUT * IN + OUT * IN
    assert made("shira").flops() == 4
    assert made("oft").flops() == 2 * IN * 4 * OUT
    assert made("dora").flops() == OUT * IN + made("lora").flops()
    assert made("lora").T.flops() == made("lora").flops()


def test_transforms(w: np.ndarray) -> None:
    """Jit, vmap, grad, and no second trace for other numbers."""
    traces = []

    @jax.jit
    def applied(chain: list[AffineMap], w: jax.Array) -> jax.Array:
        traces.append(0)
        return run(fold(chain), w)

    kinds = ("lora", "oft", "loha", "dora")
    chains = [[made(kind, seed) for kind in kinds] for seed in (1, 2)]
    for chain in chains:
        close(applied(chain, jnp.asarray(w)), naive(chain, w))
    assert len(traces) == 1
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *chains)
    both = jax.vmap(lambda chain: run(fold(chain), jnp.asarray(w)))(stacked)
    for found, chain in zip(both, chains, strict=True):
        close(found, naive(chain, w))
    slope = jax.grad(lambda chain: jnp.sum(applied(chain, jnp.asarray(w)) ** 2))(chains[0])
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(slope))
    shaped = jax.eval_shape(applied, chains[0], jnp.asarray(w, jnp.float64))
    assert shaped.shape == SHAPE and shaped.dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16], ids=str)
def test_dtypes_are_kept(dtype: Any) -> None:
    """Every kind, and all of them in a row, under strict promotion."""
    chain = [
        jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, made(kind))
        for kind in KINDS
    ]
    w = jnp.ones(SHAPE, dtype)
    for map_ in (*([map_] for map_ in chain), chain):
        assert jax.eval_shape(lambda map_, w: run(fold(map_), w), map_, w).dtype == dtype


def test_frozen() -> None:
    map_, base = identity(SHAPE), Base(None, SHAPE)
    for thing, name in ((map_, "left"), (base, "matrix")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, None)
    assert map_ == map_ and map_ != identity(SHAPE)
    assert jax.tree.leaves(base) == [] and hash(jax.tree.structure(base))


def test_base_that_was_not_handed() -> None:
    bias = jnp.ones((6, 1))
    assert Base(None, SHAPE, bias).read("bias") is bias
    with pytest.raises(ValueError) as caught:
        Base(None, SHAPE, bias).read("matrix")
    assert str(caught.value) == (
        "a map of a weight (6, 8) reads the base's matrix, found None. Pass Base.matrix to updates "
        "whose reads_base is true."
    )
    with pytest.raises(ValueError, match=r"reads the base's bias, found None\. Pass Base\.bias"):
        Base(jnp.ones(SHAPE), SHAPE).read("bias")


def test_maps_of_other_shapes_are_refused() -> None:
    map_ = identity((8, 6))
    with pytest.raises(ShapeError, match=r"expected equal inner sizes"):
        map_.after(AffineMap(Diagonal(jnp.ones(6)), Identity(8), Zero(6, 8)))
    for chain in ([map_, made("lora")], [made("lora"), map_], [made("oft"), map_]):
        with pytest.raises(ShapeError, match="expected equal"):
            fold(chain)
