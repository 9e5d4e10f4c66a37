"""Training: initializing adapters, selecting what is trained, fitting strengths, rank schedules."""

from typing import TYPE_CHECKING

from jaxmix.first_use import importer

# For type checkers. At run time a name is imported when it is first used: readers of adapters need
# the rules for target modules only.
if TYPE_CHECKING:
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

# Each public name, and the module that has it.
_HOMES = {
    "Fit": "jaxmix.training.fitting",
    "RankSchedule": "jaxmix.training.schedule",
    "RankState": "jaxmix.training.schedule",
    "Whole": "jaxmix.training.partition",
    "by_site": "jaxmix.training.fitting",
    "draw_strengths": "jaxmix.training.picture",
    "fit": "jaxmix.training.fitting",
    "init": "jaxmix.training.initialize",
    "labels": "jaxmix.training.partition",
    "orthogonality": "jaxmix.training.schedule",
    "strengths_by_site": "jaxmix.training.picture",
    "trainable": "jaxmix.training.partition",
}

__getattr__ = importer("jaxmix.training", _HOMES)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
