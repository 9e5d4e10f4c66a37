"""Measures of what adapters change: how much, in how many directions, and how far they agree.

They are taken of effects ``Δ = W' − W`` (out, in) at each site, as `jaxmix.effects` gives them: on
factors where an effect is of low rank, and on the dense matrix elsewhere.
"""

from jaxmix.measures.formulas import (
    effective_rank,
    inner,
    overlap,
    principal_angles,
    shares,
    sign_agreement,
)
from jaxmix.measures.measuring import Measures, OfPair, OfSite, measure
from jaxmix.measures.picture import draw_measures

__all__ = [
    "Measures",
    "OfPair",
    "OfSite",
    "draw_measures",
    "effective_rank",
    "inner",
    "measure",
    "overlap",
    "principal_angles",
    "shares",
    "sign_agreement",
]
