"""Affine maps: the laws of the monoid, folding, and the cost of folded maps."""

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

from .messages import full_text

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


# One map of every kind that the families make.
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


def map_of_kind(kind: str, seed: int = 0) -> AffineMap:
    """Returns a map of a kind."""
    rng = np.random.default_rng([seed, *map(ord, kind)])
    return KINDS[kind](lambda *shape: jnp.asarray(rng.normal(size=shape)))


def chain_of_all_kinds(*kinds: str) -> list[AffineMap]:
    """Returns one map per kind, all different."""
    return [map_of_kind(kind, i) for i, kind in enumerate(kinds)]


def naive(chain: Chain, w: np.ndarray) -> np.ndarray:
    """Applies the maps one after another, as dense matrices."""
    for map_ in chain:
        left, right, delta = (np.asarray(x.dense()) for x in (map_.left, map_.right, map_.shift))
        w = left @ w @ right.T + delta
    return w


def run(steps: Chain, w: Any) -> jax.Array:
    """Applies folded steps one after another."""
    return reduce(lambda x, step: step(x), steps, jnp.asarray(w))


def cost(steps: Chain) -> int:
    """Returns the cost of a chain on a dense weight."""
    return sum(step.flops() for step in steps)


def close(output: Any, expected: Any) -> None:
    """Asserts equality up to float64's rounding."""
    assert output.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(output) / scale, expected / scale, rtol=0, atol=1e-12)


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """Compares everything in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compiles without optimization, since compiling takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def w() -> np.ndarray:
    """Returns a weight (out, in)."""
    return np.random.default_rng(1).normal(size=SHAPE)


@pytest.mark.parametrize("kind", KINDS)
def test_single_map(kind: str, w: np.ndarray) -> None:
    """A map equals its matrices, also transposed and composed with the identity."""
    map_ = map_of_kind(kind)
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
def test_pairs_compose_and_fold(left: str, w: np.ndarray) -> None:
    """Composing and folding every pair of kinds gives the maps applied in order."""
    chains = [chain_of_all_kinds(left, right) for right in KINDS]

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
    """Both nestings give the same map, with structures of the same cost."""
    with jax.enable_x64(True):
        a, b, c = chain_of_all_kinds(*kinds)
        early, late = c.after(b.after(a)), c.after(b).after(a)
        w = np.random.default_rng(2).normal(size=SHAPE)
        close(early(jnp.asarray(w)), naive([a, b, c], w))
        close(late(jnp.asarray(w)), naive([a, b, c], w))


@settings(max_examples=30)
@given(st.lists(st.sampled_from(list(KINDS)), max_size=6))
def test_fold_equals_the_chain(kinds: list[str]) -> None:
    """A folded chain is the same map, costs no more, and has its low rank in the last step."""
    with jax.enable_x64(True):
        chain = chain_of_all_kinds(*kinds)
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
def test_folding_in_parts_equals_folding_at_once(left: list[str], right: list[str]) -> None:
    """Folding already folded chains gives the whole chain's map."""
    with jax.enable_x64(True):
        chain = chain_of_all_kinds(*left, *right[:3])
        w = np.random.default_rng(4).normal(size=SHAPE)
        folded = fold([*fold(chain[: len(left)]), *fold(chain[len(left) :])])
        close(run(folded, w), naive(chain, w))
        assert cost(folded) <= cost(chain)


def _kinds(delta: Operator) -> set[type]:
    return {type(term) for term in (delta.terms if isinstance(delta, Sum) else (delta,))}


def test_empty_chain_folds_to_nothing() -> None:
    """An empty chain has no steps."""
    assert fold([]) == ()
    assert fold([identity(SHAPE)] * 3) == ()


def dots(steps: Chain) -> list[tuple[int, ...]]:
    """Returns the sizes of the matrix products in a traced program that make dense matrices."""
    jaxpr = jax.make_jaxpr(lambda steps, w: run(steps, w))(tuple(steps), jnp.ones(SHAPE))
    sizes = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size = eqn.invars[0].aval.shape[contracted[0]]
            sizes.append((*eqn.outvars[0].aval.shape, size))
    return sorted(sizes)


@pytest.mark.parametrize("order", sorted(set(permutations(["lora", "lora", "loha", "loha"]))))
def test_cost_does_not_depend_on_the_order_of_kinds(order: tuple[str, ...]) -> None:
    """PEFT advises adding equal types consecutively; folding makes this unnecessary."""
    together = fold(chain_of_all_kinds("lora", "lora", "loha", "loha"))
    steps = fold(chain_of_all_kinds(*order))
    assert cost(steps) == cost(together) < cost(chain_of_all_kinds(*order))
    assert len(steps) == 1
    # One product of rank 2 + 2 for both LoRAs, and two of rank 2 for each LoHa.
    assert dots(steps) == dots(together) == [(*SHAPE, 2)] * 4 + [(*SHAPE, 4)]
    (step,) = steps
    assert isinstance(step.shift, Sum) and len(step.shift.terms) == 3


def test_low_rank_passes_a_rotation() -> None:
    """LoRA, OFT, LoRA folds to one rotation and one low-rank term."""
    chain = chain_of_all_kinds("lora", "oft", "lora")
    (step,) = fold(chain)
    assert isinstance(step.shift, LowRank) and step.shift.rank == 4
    assert isinstance(step.right, BlockDiagonal)
    assert cost([step]) == cost(fold(chain_of_all_kinds("oft", "lora", "lora"))) < cost(chain)


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
def test_number_of_steps(kinds: tuple[str, ...], steps: int, w: np.ndarray) -> None:
    """Each chain folds to the expected number of steps."""
    folded = fold(chain_of_all_kinds(*kinds))
    assert len(folded) == steps
    close(run(folded, w), naive(chain_of_all_kinds(*kinds), w))


def test_rotation_is_applied_once() -> None:
    """Composition collects terms that the rotation can't absorb under one product."""
    oft, added = map_of_kind("oft"), map_of_kind("loha").after(map_of_kind("lokr"))
    both = oft.after(map_of_kind("lora").after(added))
    assert isinstance(both.shift, Sum)
    assert [type(term) for term in both.shift.terms] == [LowRank, Product]


def test_cost_of_a_map() -> None:
    """Costs equal multiplications and additions counted by hand."""
    assert identity(SHAPE).flops() == 0
    assert map_of_kind("lora").flops() == 2 * 2 * OUT * IN + OUT * IN
    assert map_of_kind("shira").flops() == 4
    assert map_of_kind("oft").flops() == 2 * IN * 4 * OUT
    assert map_of_kind("dora").flops() == OUT * IN + map_of_kind("lora").flops()
    assert map_of_kind("lora").T.flops() == map_of_kind("lora").flops()


def test_transforms(w: np.ndarray) -> None:
    """jit, vmap and grad work, and other numbers cause no second trace."""
    traces = []

    @jax.jit
    def applied(chain: list[AffineMap], w: jax.Array) -> jax.Array:
        traces.append(0)
        return run(fold(chain), w)

    kinds = ("lora", "oft", "loha", "dora")
    chains = [[map_of_kind(kind, seed) for kind in kinds] for seed in (1, 2)]
    for chain in chains:
        close(applied(chain, jnp.asarray(w)), naive(chain, w))
    assert len(traces) == 1
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *chains)
    outputs = jax.vmap(lambda chain: run(fold(chain), jnp.asarray(w)))(stacked)
    for output, chain in zip(outputs, chains, strict=True):
        close(output, naive(chain, w))
    slope = jax.grad(lambda chain: jnp.sum(applied(chain, jnp.asarray(w)) ** 2))(chains[0])
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(slope))
    shaped = jax.eval_shape(applied, chains[0], jnp.asarray(w, jnp.float64))
    assert shaped.shape == SHAPE and shaped.dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16], ids=str)
def test_dtypes_are_kept(dtype: Any) -> None:
    """Every kind, and a chain of all kinds, keeps dtypes under strict promotion."""
    chain = [
        jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, map_of_kind(kind))
        for kind in KINDS
    ]
    w = jnp.ones(SHAPE, dtype)
    for map_ in (*([map_] for map_ in chain), chain):
        assert jax.eval_shape(lambda map_, w: run(fold(map_), w), map_, w).dtype == dtype


def test_frozen() -> None:
    """Maps and bases are immutable."""
    map_, base = identity(SHAPE), Base(None, SHAPE)
    for instance, name in ((map_, "left"), (base, "matrix")):
        with pytest.raises(FrozenInstanceError):
            setattr(instance, name, None)
    assert map_ == map_ and map_ != identity(SHAPE)
    assert jax.tree.leaves(base) == [] and hash(jax.tree.structure(base))


def test_missing_base_raises() -> None:
    """A map that reads an absent base raises an error."""
    bias = jnp.ones((6, 1))
    assert Base(None, SHAPE, bias).read("bias") is bias
    with pytest.raises(ValueError) as caught:
        Base(None, SHAPE, bias).read("matrix")
    assert str(caught.value) == (
        "a map of a weight (6, 8) reads the base's matrix, found None. Pass Base.matrix to updates "
        "whose reads_base is true."
    )
    with pytest.raises(ValueError) as caught:
        Base(jnp.ones(SHAPE), SHAPE).read("bias")
    assert str(caught.value) == (
        "a map of a weight (6, 8) reads the base's bias, found None. Pass Base.bias to updates "
        "whose reads_base is true."
    )


def test_mismatched_shapes_are_refused() -> None:
    """Composing maps of different shapes raises an error."""
    map_ = identity((8, 6))
    with pytest.raises(
        ShapeError,
        match=full_text(
            "multiply: the matrices have shapes (8, 8) and (6, 6), "
            "expected equal inner sizes. Do both updates belong to the "
            "same weight?"
        ),
    ):
        map_.after(AffineMap(Diagonal(jnp.ones(6)), Identity(8), Zero(6, 8)))
    for chain, shapes in (
        ([map_, map_of_kind("lora")], "(8, 6) and (6, 8)"),
        ([map_of_kind("lora"), map_], "(6, 8) and (8, 6)"),
        ([map_of_kind("oft"), map_], "(6, 8) and (8, 6)"),
    ):
        message = (
            f"add: the matrices have shapes {shapes}, expected equal shapes. Do both updates "
            "belong to the same weight?"
        )
        with pytest.raises(ShapeError, match=full_text(message)):
            fold(chain)
