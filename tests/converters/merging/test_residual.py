"""The distance of a merged tensor from base plus mix."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxmix.converters.checkpoints.huggingface import Stored
from jaxmix.converters.merging.recipe import Recipe, Share
from jaxmix.converters.merging.residual import Residual, measure_residual
from jaxmix.families import LoRA
from jaxmix.placement.form import Form

from ...uncompiled import uncompiled

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(3)
BASE = RNG.standard_normal((6, 4)).astype(BF16)
A, B = RNG.standard_normal((2, 4)).astype(np.float32), RNG.standard_normal((6, 2))
EXACT = BASE.astype(np.float64) + 0.5 * B.astype(np.float32).astype(np.float64) @ A


@pytest.fixture
def changed(tmp_path: Path) -> Recipe:
    """A tensor in bfloat16 that a LoRA changes."""
    return saved(tmp_path, BASE)


def saved(folder: Path, base: np.ndarray, scale: float = 0.5) -> Recipe:
    """Writes a base; a LoRA changes it."""
    (folder / "x").write_bytes(base.tobytes())
    stored = Stored("q.weight", "BF16", base.shape, folder / "x", 0, base.nbytes)
    lora: Any = LoRA(A, B.astype(np.float32), scale)
    return Recipe(stored, (Share("q", ((1.0, lora),), Form("weight")),))


def measure(recipe: Recipe, merged: np.ndarray) -> Residual:
    """Measures without compiling."""
    with uncompiled():
        return measure_residual(recipe, lambda rows: merged[rows])


def test_one_rounding_is_explained_and_two_steps_are_not(changed: Recipe) -> None:
    """The nearest number is at most half a step away, the next one more than that."""
    nearest = EXACT.astype(BF16)
    right = measure(changed, nearest)
    assert 0 < right.worst <= 1 and right.kept == pytest.approx(1, abs=0.01)
    bits = nearest.copy()
    bits.view(np.uint16)[4, 1] += 1
    assert measure(changed, bits).worst > 1


def test_lost_effect_is_measured(changed: Recipe, tmp_path: Path) -> None:
    """The base itself has none of the effect; half of the effect is a half."""
    assert measure(changed, BASE).kept == 0
    half = (BASE.astype(np.float64) + (EXACT - BASE.astype(np.float64)) / 2).astype(BF16)
    assert measure(changed, half).kept == pytest.approx(0.5, abs=0.01)
    without = saved(tmp_path, BASE, scale=0.0)
    assert measure(without, BASE) == Residual(0.0, None)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_must_be_those_of_the_base(
    number: float, tmp_path: Path
) -> None:
    """In one of the two alone they are the farthest distance, which JSON can hold."""
    broken = BASE.copy()
    broken[2, 3] = number
    merged = EXACT.astype(BF16)
    merged[2, 3] = np.nan
    assert measure(saved(tmp_path, broken), merged).worst <= 1
    assert measure(saved(tmp_path, BASE), merged).worst == 1e30
    assert measure(saved(tmp_path, broken), EXACT.astype(BF16)).worst == 1e30


def test_tensor_without_numbers_has_no_distance(tmp_path: Path) -> None:
    """Nothing is read."""
    empty = saved(tmp_path, BASE[:0])
    assert measure_residual(empty, lambda rows: pytest.fail(str(rows))) == Residual(0.0, None)
