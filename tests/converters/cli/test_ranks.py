"""The options that limit ranks, and the errors of a LoRA."""

from jaxmix.converters.cli.ranks import rank_of


def test_rank_of_options() -> None:
    """The options become the library's rank argument."""
    given = [(None, None), (3, None), (None, 0.5), (None, 1.0)]
    assert [rank_of(*options) for options in given] == [None, 3, 0.5, "exact"]
