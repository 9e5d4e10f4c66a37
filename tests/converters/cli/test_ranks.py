"""The options that limit ranks, and the errors of a LoRA."""

from jaxmix.converters.cli.ranks import error_lines, rank_of


def test_rank_of_options() -> None:
    """The options become the library's rank argument."""
    given = [(None, None), (3, None), (None, 0.5), (None, 1.0)]
    assert [rank_of(*options) for options in given] == [None, 3, 0.5, "exact"]


def test_largest_errors_are_listed() -> None:
    """Three of them after the mean of all; nothing without errors."""
    errors = {"a": 0.01, "b[red]": 0.5, "c": 0.0, "d": 0.25, "e": 0.24}
    assert error_lines(errors) == [
        "error ‖Δ − BA‖ / ‖Δ‖: mean 20.00%, largest",
        "  50.00% at b\\[red]",
        "  25.00% at d",
        "  24.00% at e",
    ]
    assert error_lines({"x": 0.0})[1:] == ["  0.00% at x"]
    assert error_lines({}) == []
