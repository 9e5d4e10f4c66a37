"""Each family declares which of its fields are trained, and declares existing fields only."""

from dataclasses import fields
from typing import Any

import pytest

from jaxmix.families import FAMILIES, Update

# Never trained in any family: numbers from the config, and indices.
_NEVER = {"scale", "eps", "indices", "a_indices", "b_indices", "orders", "positions", "rows"}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_family_says_what_is_trained(family: type[Any]) -> None:
    stated = [base for base in family.__mro__ if "trained" in vars(base)]
    assert stated[0] is not Update, f"{family.__name__} does not say what is trained"
    children = {item.name for item in fields(family) if not item.metadata.get("static")}
    assert set(family.trained) <= children - _NEVER
    assert len(set(family.trained)) == len(family.trained)


def test_base_alone_trains_nothing() -> None:
    assert [name for name, family in FAMILIES.items() if not family.trained] == ["Rebase"]
