"""Adapters that are trained: their start, what of them is trained, strengths, AdaLoRA's schedule."""

from jaxmix.training.fit import Fit, by_site, fit
from jaxmix.training.init import init
from jaxmix.training.partition import Whole, labels, trainable
from jaxmix.training.schedule import RankSchedule, RankState, orthogonality

__all__ = [
    "Fit",
    "RankSchedule",
    "RankState",
    "Whole",
    "by_site",
    "fit",
    "init",
    "labels",
    "orthogonality",
    "trainable",
]
