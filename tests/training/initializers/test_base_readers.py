"""Kinds that read the base: its norms, its singular values, its bias."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.families import parts_of
from jaxmix.training.initializers.base_readers import KINDS

from ...uncompiled import uncompiled
from .modules import linear

_KEY = jax.random.key(0)


def made(kind: str, target: Any, **options: Any) -> Any:
    """Returns the update of a site."""
    with uncompiled():
        return KINDS[kind].make(_KEY, target, options)


def test_delora_has_the_norms_of_columns() -> None:
    """One for each input."""
    target = linear(5, 3)
    norms = np.linalg.norm(np.asarray(target.matrix), axis=0)
    np.testing.assert_allclose(made("delora", target, rank=2).norms, norms, rtol=1e-6)


@pytest.mark.parametrize(("rank", "kept"), [(None, 2), (3, 3), (0.8, 4), (4, 4)])
def test_osf_splits_the_base(rank: Any, kept: int) -> None:
    """The parts add up to the base; a rank below 1 is a share, by default half."""
    target = linear(7, 5)
    rebase, low = parts_of(made("osf", target, effective_rank=rank))
    rest, values = np.asarray(rebase.weight), np.asarray(low.e)  # pyright: ignore
    spectrum = np.linalg.svd(np.asarray(target.matrix), compute_uv=False)
    np.testing.assert_allclose(values, spectrum[kept:], rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.svd(rest, compute_uv=False)[:kept], spectrum[:kept], rtol=1e-5
    )
    total = rest + np.asarray(low.b) * values @ np.asarray(low.a)  # pyright: ignore
    np.testing.assert_allclose(total, target.matrix, atol=1e-5)


@pytest.mark.parametrize("has_bias", [False, True])
def test_glora_trains_a_bias_that_exists(has_bias: bool) -> None:
    """C, D and E are supports of the bias."""
    update = made("glora", linear(5, 3, bias=has_bias), rank=2)
    shapes = [[x.shape for x in part] for part in (update.c, update.d, update.e)]
    assert shapes == ([[(3, 2), (2, 1)], [(1,)], [(1,)]] if has_bias else [[], [], []])


def test_deft_restores_what_it_removes() -> None:
    """The rank is at most the number of outputs; PaRa has no N."""
    target = linear(3, 5)
    update = made("deft", target, rank=8, alpha=6, decomposition_method="qr")
    p, n, q = update.p, np.asarray(update.injected), np.linalg.qr(np.asarray(update.p))[0]
    assert p.shape == (3, 3) and update.scale == 2.0
    np.testing.assert_allclose(np.abs(2 * n), np.abs(q.T @ np.asarray(target.matrix)), atol=1e-5)
    assert made("deft", target, rank=8, para=True).injected is None


def test_peanut_has_as_many_decoders_as_encoders() -> None:
    """`depth` square layers on each side, all of them different."""
    update = made("peanut", linear(5, 3), rank=2, depth=3)
    inner = (*update.encoders, *update.decoders)
    assert [x.shape for x in inner] == 6 * [(2, 2)] and len(update.encoders) == 3
    assert len({np.asarray(x).tobytes() for x in inner}) == 6
    assert update.b.shape == (5, 2) and not update.b.any()
