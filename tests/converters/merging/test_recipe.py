"""How one tensor of the output is computed."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.merging import recipe
from jaxmix.converters.merging.recipe import Recipe, Share
from jaxmix.families import LoRA
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Place

from ...uncompiled import uncompiled

RNG = np.random.default_rng(2)
WEIGHT = RNG.standard_normal((6, 4)).astype(np.float32)
A, B = RNG.standard_normal((2, 4)), RNG.standard_normal((6, 2))
LORA: Any = LoRA(A.astype(np.float32), B.astype(np.float32), 0.5)


def save(folder: Path, array: np.ndarray, dtype: str) -> Stored:
    """Writes an array as the only bytes of a file."""
    (folder / "x").write_bytes(array.tobytes())
    return Stored("q.weight", dtype, array.shape, folder / "x", 0, array.nbytes)


def share(part: Any = "weight", **fields: Any) -> Share:
    """A LoRA at strength 3."""
    return Share("q", ((3.0, LORA),), Form(part, **fields))


@pytest.mark.parametrize(
    ("shape", "shares", "is_plain"),
    [
        ((6, 4), (), True),
        ((6, 4), (share(),), True),
        ((6, 4), (share(), share()), False),  # two sites in one tensor
        ((6,), (share("bias"),), True),
        ((6, 1), (share("bias"),), True),
        ((2, 3), (share("bias"),), False),  # updates see six rows, the tensor has two
        ((4, 6), (share(transposed=True),), True),
        ((3, 6, 4), (share(place=Place("", index="1")),), False),
    ],
)
def test_only_the_matrix_of_one_site_is_cut(
    shape: tuple[int, ...], shares: tuple[Share, ...], is_plain: bool
) -> None:
    """Rows of the tensor must be rows of what the updates see."""
    stored = Stored("q", "F32", shape, Path("x"), 0, 0)
    assert Recipe(stored, shares).is_plain is is_plain


def test_runs_join_to_base_plus_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, rounded once; the losses count each number once."""
    monkeypatch.setattr(recipe, "BLOCK", 8)
    base = WEIGHT.astype(ml_dtypes.bfloat16)
    stored = save(tmp_path, base, "BF16")
    with uncompiled():
        prepared = Recipe(stored, (share(),)).prepare()
        assert [(run.start, run.stop) for run in prepared.runs] == [(0, 2), (2, 4), (4, 6)]
        results = [prepared.compute(prepared.read(rows), rows) for rows in prepared.runs]
    exact = base.astype(np.float64) + 3 * 0.5 * B @ A
    merged = np.concatenate([result.array for result in results])
    np.testing.assert_array_equal(merged, exact.astype(np.float32).astype(base.dtype), strict=True)
    assert sum(result.loss.count for result in results if result.loss) == base.size


def test_tensor_without_updates_keeps_its_bits(tmp_path: Path) -> None:
    """Such recipes only dequantize or resize; float32 has no loss, bfloat16 one of zero."""
    for dtype, name in ((np.float32, "F32"), (ml_dtypes.bfloat16, "BF16")):
        base = WEIGHT.astype(dtype)
        base[0, 0] = -0.0
        prepared = Recipe(save(tmp_path, base, name), ()).prepare()
        (rows,) = prepared.runs
        with uncompiled():
            result = prepared.compute(prepared.read(rows), rows)
        assert result.array.tobytes() == base.tobytes() and result.array.dtype == dtype
        assert (result.loss is None) == (name == "F32")
        assert result.loss is None or result.loss.squares[0] == 0


@pytest.mark.parametrize(("shape", "runs"), [((), [1]), ((0, 4), [0]), ((5, 0), [5])])
def test_tensors_without_rows_or_columns_have_one_run(
    shape: tuple[int, ...], runs: list[int]
) -> None:
    """A scalar has one row."""
    prepared = Recipe(Stored("q", "F32", shape, Path("x"), 0, 0), ()).prepare()
    assert [run.stop - run.start for run in prepared.runs] == runs
