"""Updates of rows of a fused weight are joined into one with exactly the same effect."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.families import Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together, Update
from jaxmix.families.joined_rows import join_rows
from jaxmix.families.row_counts import matrix_shape, row_count
from jaxmix.families.rows import Rows, rows_of

IN = 6
SIZES = (4, 8, 4)
draw = np.random.default_rng(0)


def normal(*size: int) -> Any:
    """Random numbers."""
    return draw.normal(size=size)


def lora(rows: int, **config: Any) -> LoRA:
    """A LoRA whose rank and scale depend on the rows."""
    return LoRA(normal(rows // 2, IN), normal(rows, rows // 2), 2.0 / rows, **config)


def loha(rows: int) -> LoHa:
    """A LoHa of rank 2."""
    return LoHa(normal(rows, 2), normal(2, IN), normal(rows, 2), normal(2, IN), 2.0 / rows)


Y = normal(2, 3)

KINDS: dict[str, tuple[Callable[[int], Update], type[Update]]] = {
    "lora": (lora, LoRA),
    "lora with a bias": (lambda n: lora(n, bias=normal(n)), LoRA),
    "dora": (lambda n: lora(n, magnitude=1 + np.abs(normal(n))), LoRA),
    "loha": (loha, LoHa),
    "lokr with one y": (lambda n: LoKr((normal(n // 2, 2),), (Y,), 2.0 / n), LoKr),
    "lokr of pairs with one y": (
        lambda n: LoKr((normal(n // 2, 1), normal(1, 2)), (Y,), 2.0 / n),
        LoKr,
    ),
    "lokr": (lambda n: LoKr((normal(n // 2, 2),), (normal(2, 3),), 2.0 / n), Delta),
    "diff": (lambda n: Delta(normal(n, IN), normal(n)), Delta),
    "normed": (lambda n: Normed(loha(n), 1 + np.abs(normal(n)), 1e-7), Normed),
    "together": (lambda n: Together((loha(n), Delta(bias=normal(n)))), Together),
    "rotation": (lambda n: DiagOFT(normal(n // 2, 2, 2), normal(n)), DiagOFT),
}


def applied(update: Update, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight and bias of a layer after an update."""
    with jax.enable_x64(True):
        base = {"x.weight": weight, "x.bias": bias}
        out = jaxmix.compose(base, [jaxmix.Adapter({"x": update})])
        return np.asarray(out["x.weight"]), np.asarray(out["x.bias"])


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("kind", KINDS)
def test_joined_update_is_that_of_the_parts(kind: str) -> None:
    """The joined update changes each part's rows as the part's own update does."""
    draw_part, family = KINDS[kind]
    parts = [draw_part(size) for size in SIZES]
    joined = join_rows(parts, SIZES)
    assert type(joined) is family and row_count(joined) == sum(SIZES)
    weight, bias = normal(sum(SIZES), IN), normal(sum(SIZES))
    actual = applied(joined, weight, bias)
    ends = np.cumsum(SIZES)[:-1]
    parts_and_leaves = zip(parts, np.split(weight, ends), np.split(bias, ends), strict=True)
    outputs = [applied(part, w, b) for part, w, b in parts_and_leaves]
    tolerance = 1e-6 if kind == "lokr" else 1e-12  # a dense difference has float32's accuracy
    for actual_leaf, expected in zip(
        actual, map(np.concatenate, zip(*outputs, strict=True)), strict=True
    ):
        np.testing.assert_allclose(actual_leaf, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr with one y", "lokr", "diff", "rotation"])
def test_part_without_an_update_is_unchanged(kind: str) -> None:
    """Rows of a part without an update stay as in the base."""
    draw_part, _ = KINDS[kind]
    joined = join_rows([draw_part(4), None, draw_part(4)], SIZES)
    assert joined is not None
    weight, bias = normal(sum(SIZES), IN), normal(sum(SIZES))
    actual, _ = applied(joined, weight, bias)
    np.testing.assert_allclose(actual[4:12], weight[4:12], atol=1e-7)
    assert np.abs(actual - weight)[[0, -1]].min() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr with one y", "diff", "rotation"])
def test_cut_and_joined_is_the_same_update(kind: str) -> None:
    """Factors that all parts share are not repeated, so the rank does not grow."""
    draw_part, family = KINDS[kind]
    update = draw_part(16)
    parts = [rows_of(update, slice(start, start + 4), (16, IN)) for start in (0, 4, 8, 12)]
    assert all(type(part) is family for part in parts)
    joined = join_rows(parts, (4,) * 4)
    assert joined is not None
    for before, after in zip(jax.tree.leaves(update), jax.tree.leaves(joined), strict=True):
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_rows_of_a_block_become_a_difference() -> None:
    """A LoKr whose blocks are cut can't stay a LoKr."""
    lokr = LoKr((normal(2, 2),), (normal(4, 3),), 0.5)
    part = rows_of(lokr, slice(0, 2), (8, IN))
    assert isinstance(part, Rows) and matrix_shape(part) == (2, IN)
    joined = join_rows([part], [2])
    assert isinstance(joined, Delta)
    expected = 0.5 * np.kron(np.asarray(lokr.x[0]), np.asarray(lokr.y[0]))[:2]
    np.testing.assert_allclose(np.asarray(joined.weight), expected, rtol=1e-6)


def test_updates_that_cannot_be_joined() -> None:
    """Norms of rows without an update, norms by input, embeddings, other sizes, mixed rotations."""
    dora = lora(4, magnitude=np.ones(4))
    by_input = Normed(loha(4), np.ones(IN), axis="in")
    rotation = DiagOFT(normal(2, 2, 2))
    for parts in (
        [dora, None, dora],
        [dora, lora(8), dora],
        [by_input, by_input, by_input],
        [lora(4), lora(4), lora(4)],
        [rotation, lora(8), rotation],
        [rotation, DiagOFT(normal(2, 4, 4)), rotation],
        [DiagOFT(normal(2, 2, 2), bound=0.1), None, rotation],
        [lora(4, embedding=True), None, None],
        [lora(4, transposed=True), None, None],
        [None, None, None],
    ):
        assert join_rows(parts, SIZES) is None
    a = LoHa(normal(2, 4), normal(2, 3), normal(2, 4), normal(2, 3), 1.0, normal(2, 2, 1), None)
    assert join_rows([a, None, None], SIZES) is None
