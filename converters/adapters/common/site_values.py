"""Numbers by site in PEFT's configs: one value for most sites, and patterns for the others."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["as_float", "common_value", "ranks_and_alphas"]


def common_value(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    r"""Returns the value of most sites, and a pattern for each of the others.

    Args:
        values: ``{site: value}``, with at least one site.

    Returns:
        The value, and ``{regular expression: value}`` as in ``rank_pattern`` and
        ``alpha_pattern``.

    Example:
        >>> common_value({"a.q": 8, "a.k": 8, "b.q": 4})
        (8, {'^b\\.q': 4})
    """
    common, _ = Counter(values.values()).most_common(1)[0]
    # PEFT allows any prefix before a pattern, except before a ^.
    return common, {f"^{re.escape(site)}": v for site, v in values.items() if v != common}


def as_float(value: Any) -> float:
    """Converts a number, or an array without axes, to a Python float."""
    return float(np.asarray(value, np.float64))


def ranks_and_alphas(
    ranks: Mapping[str, int], scales: Mapping[str, Any], *, alpha: str = "alpha"
) -> dict[str, Any]:
    """Returns the config's fields for ranks and scales (alpha/rank) that may differ by site.

    Args:
        ranks: ``{site: rank}``.
        scales: ``{site: scale}``.
        alpha: The name of alpha's field.

    Returns:
        ``r``, alpha, ``rank_pattern`` and ``alpha_pattern``.
    """
    alphas = {site: _alpha(as_float(scales[site]), rank) for site, rank in ranks.items()}
    rank, rank_pattern = common_value(ranks)
    common_alpha, alpha_pattern = common_value(alphas)
    fields = {"r": rank, alpha: common_alpha}
    return {**fields, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _alpha(scale: float, rank: int) -> float:
    """The alpha that gives the scale, exactly and as an integer if there is such an alpha."""
    product = scale * rank
    near = (round(product), product, *(math.nextafter(product, to) for to in (-math.inf, math.inf)))
    return next((alpha for alpha in near if alpha / rank == scale), product)
