"""Kinds whose sites share arrays: what is shared, and how large it is."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.training.initializers.shared import KINDS
from jaxmix.training.modules import Target

from ...uncompiled import uncompiled
from .modules import linear

_KEY = jax.random.key(0)
# The most outputs and the most inputs are those of different sites.
_TARGETS = {"tall": linear(9, 4), "wide": linear(5, 7), "small": linear(3, 2)}


def made(kind: str, targets: dict[str, Target] = _TARGETS, **options: Any) -> dict[str, Any]:
    """Returns the updates of all sites."""
    with uncompiled():
        return KINDS[kind].make_all(_KEY, targets, options)


def test_projections_fit_the_largest_sites() -> None:
    """All sites have the same arrays; PVeRA's A has twice the rows."""
    for kind, rows in (("vera", 3), ("pvera", 6)):
        updates = made(kind, rank=3)
        shared = [(u.a, u.b) for u in updates.values()]
        assert all(a is shared[0][0] and b is shared[0][1] for a, b in shared)
        assert [x.shape for x in shared[0]] == [(rows, 7), (9, 3)]


@pytest.mark.parametrize(
    ("weight_tying", "groups"),
    [(0.0, [0, 1, 2, 3, 4]), (0.5, [0, 0, 1, 1, 1]), (0.9, [0] * 5), (1.0, [0] * 5)],
)
def test_tinylora_ties_runs_of_sites(weight_tying: float, groups: list[int]) -> None:
    """The sites of a group share v; the last group gets the rest."""
    targets = {f"{i}": linear(4, 3, seed=i) for i in range(5)}
    updates = made("tinylora", targets, weight_tying=weight_tying, init_weights="uniform", u=3)
    vectors = [update.v for update in updates.values()]
    for i, x in enumerate(vectors):
        assert [x is y for y in vectors] == [groups[i] == group for group in groups]
    assert len({np.asarray(x).tobytes() for x in vectors}) == len(set(groups))


@pytest.mark.parametrize("length", [7, 200])
def test_unilora_uses_entries_equally_often(length: int) -> None:
    """Entries differ by one use at most, and are scaled by the root of their count."""
    updates = made("unilora", rank=2, theta_d_length=length)
    indices = np.concatenate(
        [np.ravel(x) for u in updates.values() for x in (u.a_indices, u.b_indices)]
    )
    scales = np.concatenate(
        [np.ravel(x) for u in updates.values() for x in (u.a_scales, u.b_scales)]
    )
    counts = np.bincount(indices, minlength=length)
    assert counts.sum() == 2 * (9 + 4 + 5 + 7 + 3 + 2) and np.ptp(counts) == 1
    np.testing.assert_allclose(scales, counts[indices] ** -0.5, rtol=1e-6)


def test_bases_of_randlora_have_standard_deviation_1() -> None:
    """Of a site with fewer inputs than outputs, the roles of both are swapped."""
    update = made("randlora", {"lin": linear(11, 5)}, rank=2)["lin"]
    assert update.a.shape == (2, 1, 5) and update.b.shape == (11, 3, 2)
    for array in (update.a, update.b):
        np.testing.assert_allclose(np.std(array, ddof=1), 1, rtol=1e-5)
    assert update.gamma.shape == (3, 5) and float(update.gamma[0, 0]) == np.float32(1 / 5)
