"""Measures how much adapters change, in how many directions, and to what extent they agree.

The measures are computed from the effects ``Δ = W' − W`` (out, in) of `jaxmix.effects` at each
site, using factors if an effect has low rank and the dense matrix otherwise.
"""

from jaxmix.measures.formulas import (
    effective_rank,
    inner,
    overlap,
    principal_angles,
    shares,
    sign_agreement,
)
from jaxmix.measures.measuring import Measures, PairMeasures, SiteMeasures, measure
from jaxmix.measures.picture import draw_measures

__all__ = [
    "Measures",
    "PairMeasures",
    "SiteMeasures",
    "draw_measures",
    "effective_rank",
    "inner",
    "measure",
    "overlap",
    "principal_angles",
    "shares",
    "sign_agreement",
]

# Their former names.
OfSite, OfPair = SiteMeasures, PairMeasures
