"""The mutations match the code: each text occurs once in the library, and its tests exist."""

import pytest

from .mutations import MUTATIONS, ROOT, Mutation, file_of


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_applies(mutation: Mutation) -> None:
    """The mutated text occurs exactly once, and the named tests exist."""
    assert file_of(ROOT, mutation.old).suffix == ".py"
    assert mutation.old != mutation.new
    assert (ROOT / "tests" / mutation.near[0]).exists()
