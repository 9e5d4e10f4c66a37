"""Each family declares which of its fields are trained, and declares existing fields only."""

from dataclasses import fields
from typing import Any

import pytest

from jaxmix.families import FAMILIES, Update

# Fields that no family trains: numbers from the config, and indices.
_NEVER = {"scale", "eps", "indices", "a_indices", "b_indices", "orders", "positions", "rows"}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_family_declares_what_is_trained(family: type[Any]) -> None:
    declaring = [base for base in family.__mro__ if "trained" in vars(base)]
    assert declaring[0] is not Update, f"{family.__name__} does not say what is trained"
    children = {field.name for field in fields(family) if not field.metadata.get("static")}
    assert set(family.trained) <= children - _NEVER
    assert len(set(family.trained)) == len(family.trained)


def test_base_alone_trains_nothing() -> None:
    assert [name for name, family in FAMILIES.items() if not family.trained] == ["Rebase"]
