"""The names that help and completion offer."""

from typing import get_args

from jaxmix.combining import METHODS
from jaxmix.combining.formulas import MajoritySign
from jaxmix.converters.adapters.loading import FORMATS
from jaxmix.converters.adapters.peft.about import TASKS
from jaxmix.converters.cli import choices
from jaxmix.placement.layout import LAYOUTS, libraries


def test_choices_are_those_of_the_tables() -> None:
    """Help and completion know these names without importing the tables."""
    assert choices.LAYOUTS == tuple(LAYOUTS)
    assert choices.LIBRARIES == tuple(libraries())
    assert choices.METHODS == tuple(METHODS)
    assert choices.MAJORITY_SIGNS == get_args(MajoritySign)
    assert choices.READ == tuple(format_.name for format_ in FORMATS)
    assert choices.TASKS == tuple(TASKS)
