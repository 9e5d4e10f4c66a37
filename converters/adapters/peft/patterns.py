"""A number for each site, as PEFT's configs say it: one for all, and patterns for the others."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["number", "ranks_and_alphas", "spread"]


def spread(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    r"""The value that most sites have, and a pattern for each of the others.

    Args:
        values: ``{site: value}``, at least one.

    Returns:
        The value, and ``{regular expression: value}`` as ``rank_pattern`` and ``alpha_pattern``
        have it.

    Example:
        >>> spread({"a.q": 8, "a.k": 8, "b.q": 4})
        (8, {'^b\\.q': 4})
    """
    most, _ = Counter(values.values()).most_common(1)[0]
    # PEFT lets a prefix stand before a pattern; the ^ keeps it away.
    return most, {f"^{re.escape(site)}": v for site, v in values.items() if v != most}


def number(value: Any) -> float:
    """A number that may be an array without axes, as JSON has it."""
    return float(np.asarray(value, np.float64))


def ranks_and_alphas(
    ranks: Mapping[str, int], scales: Mapping[str, Any], *, alpha: str = "alpha"
) -> dict[str, Any]:
    """The fields for ranks and scales (alpha/rank) that may differ by site.

    Args:
        ranks: ``{site: rank}``.
        scales: ``{site: scale}``.
        alpha: the field's name.

    Returns:
        ``r``, alpha, ``rank_pattern`` and ``alpha_pattern``.
    """
    alphas = {site: _alpha(number(scales[site]), rank) for site, rank in ranks.items()}
    rank, rank_pattern = spread(ranks)
    most, alpha_pattern = spread(alphas)
    fields = {"r": rank, alpha: most}
    return {**fields, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _alpha(scale: float, rank: int) -> float:
    """The alpha that gives a scale back, bit for bit where one does: an integer if it can be."""
    product = scale * rank
    near = (round(product), product, *(math.nextafter(product, to) for to in (-math.inf, math.inf)))
    return next((alpha for alpha in near if alpha / rank == scale), product)
