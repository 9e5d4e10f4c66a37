"""The mutations follow the code: each one's text is in the library once, and its tests exist."""

import pytest

from .mutations import MUTATIONS, ROOT, Mutation, file_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_can_be_made(mutation: Mutation) -> None:
    assert file_of(ROOT, mutation.old).suffix == ".py"
    assert mutation.old != mutation.new
    assert (ROOT / "tests" / mutation.near[0]).exists()
