"""Sparse updates: positions are distinct and inside the weight."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.errors import UnsupportedError
from jaxmix.training.initializers.sparse import KINDS

from ...messages import full_text
from .modules import linear

pytestmark = pytest.mark.usefixtures("no_compiling")

_KEY, _TARGET = jax.random.key(0), linear(5, 3)


def test_positions_are_distinct() -> None:
    """As many as entries are all of them; SHiRA's are sorted by rows, others are not."""
    everywhere = [(o, i) for o in range(5) for i in range(3)]
    for kind in ("fourierft", "waveft"):
        update: Any = KINDS[kind].make(_KEY, _TARGET, {"n_frequency": 15})
        positions = list(zip(*np.asarray(update.indices).tolist(), strict=True))
        assert sorted(positions) == everywhere != positions
    update = KINDS["shira"].make(_KEY, _TARGET, {"rank": 1})
    positions = list(zip(*np.asarray(update.indices).tolist(), strict=True))
    assert len(set(positions)) == 8 and positions == sorted(positions)
    assert set(positions) <= set(everywhere)


@pytest.mark.parametrize("select_top", [True, False])
def test_supertuning_selects_by_magnitude(select_top: bool) -> None:
    """The largest entries, or the smallest, whatever their signs."""
    options = {"sparsity": 0.7, "select_top": select_top}
    update: Any = KINDS["supertuning"].make(_KEY, _TARGET, options)
    order = np.argsort(-np.abs(np.asarray(_TARGET.matrix)).ravel())
    expected = order[:4] if select_top else order[-4:]
    assert sorted(np.asarray(update.positions).tolist()) == sorted(expected)


def test_starts_without_change_are_exact() -> None:
    """Only `True` itself means zeros: PEFT takes no number for it."""
    c3a: Any = KINDS["c3a"].make(_KEY, linear(4, 6), {"init_weights": True, "block_size": 2})
    assert [x.any() for x in jax.tree.leaves(c3a)] == [False]
    options = {"init_weights": True, "n_frequency": 2}
    fourierft: Any = KINDS["fourierft"].make(_KEY, linear(4, 6), options)
    assert not fourierft.spectrum.any()
    message = (
        "init_weights is 1, expected one of True, 'gaussian', 'xavier_uniform', 'kaiming_uniform'"
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        KINDS["c3a"].make(_KEY, linear(4, 6), {"init_weights": 1, "block_size": 2})


def test_c3a_is_drawn_within_its_bound() -> None:
    """Xavier's bound depends on both sizes, Kaiming's on the inputs."""
    for start, bound in (("xavier_uniform", (6 / 36) ** 0.5), ("kaiming_uniform", 24**-0.5)):
        update = KINDS["c3a"].make(_KEY, linear(12, 24), {"init_weights": start, "block_size": 6})
        (values,) = jax.tree.leaves(update)
        assert values.shape == (2, 4, 6) and 0.8 * bound < np.abs(values).max() <= bound
