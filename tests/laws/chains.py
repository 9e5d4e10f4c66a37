"""Chains of updates of every family, for the tests that compare them with the fold."""

from collections.abc import Sequence

import numpy as np

from jaxmix import Adapter

from ..families.module import Module
from ..families.table import SAMPLES

__all__ = ["ALL", "CHAINS", "FLAT", "STACKED", "chain"]

ALL = {kind: sample.draw for kind, sample in SAMPLES.items()}
# Kinds whose leaf is a stack of matrices, and kinds whose leaf is one matrix.
STACKED = tuple(kind for kind, sample in SAMPLES.items() if sample.shaped)
FLAT = tuple(kind for kind in ALL if kind not in STACKED)

_STRENGTHS = (0.6, -1.2, 1.0, 0.5, 1.7, -0.4)


def chain(kinds: Sequence[str], module: Module, seed: int) -> list[Adapter]:
    """Returns an adapter of each kind at ``site``, all different."""
    return [
        Adapter(
            {"site": ALL[kind](np.random.default_rng([seed, i]), module)}, _STRENGTHS[i], f"{i}"
        )
        for i, kind in enumerate(kinds)
    ]


def _chains_of_all_pairs(letters: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns chains of six in which every ordered pair of letters is adjacent exactly once.

    They are cut from a de Bruijn sequence: of letters a < b < … it is a ab ac … b bc … .
    """
    order = range(len(letters))
    circle = [x for i in order for x in (i, *(y for j in order if j > i for y in (i, j)))]
    circle.append(circle[0])
    return [tuple(letters[x] for x in circle[i : i + 6]) for i in range(0, len(circle) - 1, 5)]


CHAINS = _chains_of_all_pairs(FLAT)
