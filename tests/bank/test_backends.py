"""The bank's programs for CPU and for accelerators, lowered on a host that may have neither."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxmix import Adapter, Bank
from jaxmix.bank.looped import apply_by_loops
from jaxmix.bank.masked import apply_by_masks
from jaxmix.bank.slots import Selection
from jaxmix.families import OFT, LoHa, LoKr, LoRA
from jaxmix.operators import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Hadamard,
    Kronecker,
    LowRank,
    Operator,
    Product,
    Sparse,
    Sum,
)

from ..uncompiled import uncompiled

SLOTS, ROWS, TOKENS = 3, 5, 2
SHAPE = (8, 12)
PICK = np.array([2, -1, 0, 2, 1], np.int32)


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def low_rank(rank: int, seed: int = 0) -> LowRank:
    return LowRank(normal(SLOTS, 8, rank, seed=seed), normal(SLOTS, rank, 12, seed=seed))


def sparse() -> Sparse:
    at = np.random.default_rng(3).integers(0, 8, (SLOTS, 2, 7))
    return Sparse(normal(SLOTS, 7), jnp.asarray(at, np.int32), *SHAPE)


def wide() -> Kronecker:
    return Kronecker(normal(SLOTS, 2, 3), normal(SLOTS, 4, 4))


def blocks() -> BlockDiagonal:
    return BlockDiagonal(normal(SLOTS, 3, 4, 4), 1)


def selected(slots: Any) -> Selection:
    """The rows' slots of a stack."""
    return Selection(jnp.asarray(slots))


STACKS: dict[str, Callable[[], Operator]] = {
    "low rank": lambda: low_rank(2),
    "Hadamard": lambda: Hadamard(low_rank(2, 1), low_rank(3, 2)),
    "Hadamard of high ranks": lambda: Hadamard(low_rank(20, 1), low_rank(20, 2)),
    "Kronecker, wide": wide,
    "Kronecker, tall": lambda: Kronecker(normal(SLOTS, 4, 2), normal(SLOTS, 2, 6)),
    "dense": lambda: Dense(normal(SLOTS, *SHAPE)),
    "sparse": sparse,
    "sum": lambda: Sum((wide(), sparse())),
    "product": lambda: Product(Diagonal(normal(SLOTS, 8)), wide()),
}
SQUARE: dict[str, Callable[[], Operator]] = {
    "blocks": blocks,
    "repeated blocks": lambda: BlockDiagonal(normal(SLOTS, 2, 2, 2), 3),
    "rotation and scale": lambda: Product(Diagonal(normal(SLOTS, 12)), blocks()),
}


def in_turn(x: Any, stack: Any, pick: Any, is_transposed: bool, is_factor: bool) -> Any:
    """Each row with its own operator, as a matrix."""
    rows = []
    leaves, structure = jax.tree.flatten(stack)
    with uncompiled():
        for row, slot in zip(np.asarray(x), pick, strict=True):
            own = [jnp.asarray(np.asarray(leaf)[int(slot)]) for leaf in leaves]
            one = jax.tree.unflatten(structure, own).dense()
            one = np.asarray(one.T if is_transposed else one)
            rows.append((row if is_factor else 0 * (row @ one)) if slot < 0 else row @ one)
    return np.stack(rows)


@pytest.mark.one_of(2)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("name", [*STACKS, *SQUARE])
def test_each_row_is_multiplied_by_its_operator(name: str, is_transposed: bool) -> None:
    with jax.enable_x64(True):
        is_factor = name in SQUARE
        stack = (STACKS | SQUARE)[name]()
        rows, cols = (12, 12) if is_factor else SHAPE
        size, out = (cols, rows) if is_transposed else (rows, cols)
        x, pick = normal(ROWS, TOKENS, size, seed=5), selected(PICK)
        start = x if is_factor else jnp.zeros((ROWS, TOKENS, out), x.dtype)
        want = in_turn(x, stack, PICK, is_transposed, is_factor)
        masked = apply_by_masks(is_transposed, False, is_factor, start, x, (stack,), (pick,))
        np.testing.assert_allclose(masked, want, atol=1e-12)

        def use(operator: Operator, x: Any) -> Any:
            return x @ (operator.T if is_transposed else operator)

        looped = apply_by_loops(use, is_factor, start, x, (stack,), (pick,), (), 1)
        np.testing.assert_allclose(looped, want, atol=1e-12)


@pytest.mark.parametrize("name", STACKS)
def test_masks_weigh_members_by_strengths_and_look_rows_up(name: str) -> None:
    with jax.enable_x64(True):
        stack, x = STACKS[name](), normal(ROWS, TOKENS, 8, seed=5)
        strengths = normal(ROWS, SLOTS, seed=6)
        each = jnp.stack([in_turn(x, stack, [k] * ROWS, False, False) for k in range(SLOTS)])
        want = jnp.einsum("rs,srto->rto", strengths, each)
        start = jnp.zeros((ROWS, TOKENS, 12), x.dtype)
        weighed = Selection(strengths=strengths)
        got = apply_by_masks(False, False, False, start, x, (stack,), (weighed,))
        np.testing.assert_allclose(got, want, atol=1e-11)
        at = jnp.asarray(np.random.default_rng(7).integers(0, 8, (ROWS, TOKENS)), np.int32)
        ones = jax.nn.one_hot(at, 8, dtype=x.dtype)
        want = in_turn(ones, stack, PICK, False, False)
        got = apply_by_masks(False, True, False, start, at, (stack,), (selected(PICK),))
        np.testing.assert_allclose(got, want, atol=1e-12)


# ---------------------------------------------------------------- programs


SIZE = 16


def member(kind: str, seed: int) -> Adapter:
    """An adapter at two layers, with float32 factors."""

    def draw(*shape: int) -> Any:
        return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

    match kind:
        case "lora":
            update: Any = LoRA(draw(2, SIZE), draw(SIZE, 2), 1.0)
        case "loha":
            pair = draw(SIZE, 7), draw(7, SIZE)
            update = LoHa(*pair, *pair, 1.0)  # pyright: ignore[reportCallIssue]
        case "lokr":
            update = LoKr((draw(4, 4),), (draw(4, 4),), 1.0)
        case _:
            update = OFT(draw(4, 6))
    return Adapter({"a": update, "b": update})


def program(platform: str, kinds: tuple[str, ...], rows: int = 4) -> str:
    """Returns the StableHLO text of a bank's call, lowered for a platform."""
    params = {f"{name}.weight": np.ones((SIZE, SIZE), np.float32) for name in "ab"}
    bank = Bank({f"{i}": member(kind, i) for i, kind in enumerate(kinds)}, params)

    def run(bank: Any, params: Any, x: Any, who: Any) -> Any:
        return bank(lambda p, x: x @ p["a.weight"].T @ p["b.weight"].T)(params, x, who)

    x, who = np.ones((rows, 1, SIZE), np.float32), np.zeros(rows, np.int32)
    return export.export(jax.jit(run), platforms=[platform])(bank, params, x, who).mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_have_no_branches_sorts_or_loops(platform: str) -> None:
    text = program(platform, ("lora", "loha", "lokr", "oft", "lora"))
    for operation in ("while", "sort", "scatter", "dynamic_slice"):
        assert f"stablehlo.{operation}" not in text, operation
    assert "stablehlo.while" in program("cpu", ("lora", "loha", "lokr", "oft", "lora"))


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_routes_are_computed_once_per_call(platform: str) -> None:
    """The rows' members are compared with the owners of all slots in one operation."""
    text = program(platform, ("lora", "lokr", "lora"), rows=5)
    stacks, slots = 4, 3  # LowRank and Kronecker, at two layers
    compared = [line for line in text.splitlines() if "stablehlo.compare" in line]
    equal = [line for line in compared if " EQ," in line]
    assert len([line for line in equal if f"<5x{stacks}x{slots}x" in line]) == 1
