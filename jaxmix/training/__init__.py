"""Adapters that are trained: what of them is, strengths that are learned, AdaLoRA's schedule."""

from jaxmix.training.fit import Fit, by_site, fit
from jaxmix.training.partition import Whole, labels, trainable
from jaxmix.training.schedule import RankSchedule, RankState, orthogonality

__all__ = [
    "Fit",
    "RankSchedule",
    "RankState",
    "Whole",
    "by_site",
    "fit",
    "labels",
    "orthogonality",
    "trainable",
]
