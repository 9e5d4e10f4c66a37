"""Training: initializing adapters, selecting what is trained, fitting strengths, rank schedules."""

from jaxmix.training.fitting import Fit, by_site, fit
from jaxmix.training.initialize import init
from jaxmix.training.partition import Whole, labels, trainable
from jaxmix.training.picture import draw_strengths, strengths_by_site
from jaxmix.training.schedule import RankSchedule, RankState, orthogonality

__all__ = [
    "Fit",
    "RankSchedule",
    "RankState",
    "Whole",
    "by_site",
    "draw_strengths",
    "fit",
    "init",
    "labels",
    "orthogonality",
    "strengths_by_site",
    "trainable",
]
