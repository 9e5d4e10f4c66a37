"""Tables that are registered by name and read when they are first needed."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jaxmix import registry
from jaxmix.layout import Layout, libraries, named


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Takes back what a test registers."""
    before = [*registry.LIBRARIES], [*registry.NAME_MAPS]
    yield
    registry.LIBRARIES[:], registry.NAME_MAPS[:] = before


def test_layouts_are_read_once_when_one_is_looked_up() -> None:
    """Those that are registered later are found too."""
    reads: list[int] = []
    mine = Layout("mine", ())

    def tables() -> Mapping[str, Layout]:
        reads.append(1)
        return {"mine": mine}

    assert "mine" not in libraries()
    registry.register_libraries(tables)
    assert reads == []
    assert named("mine") is mine and libraries()["mine"] is mine
    assert reads == [1]


def test_both_functions_of_name_maps_are_registered_together() -> None:
    def find(config: Mapping[str, Any]) -> None:
        raise AssertionError("no map is read on registration")

    registry.register_name_maps(find, lambda: iter(()))
    found, all_maps = registry.NAME_MAPS[-1]
    assert found is find and list(all_maps()) == []
