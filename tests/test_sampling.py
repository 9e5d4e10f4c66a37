"""The cases that `make test` runs of a test with many of them."""

import pytest

from .sampling import mark_others_thorough

pytest_plugins = ["pytester"]


def thorough(source: str, pytester: pytest.Pytester) -> list[str]:
    """The cases of a file of tests that are thorough, or become it."""
    items = pytester.getitems(source)
    mark_others_thorough(items)
    return [item.name for item in items if item.get_closest_marker("thorough")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")
def test_one_of_three_cases_is_kept(pytester: pytest.Pytester) -> None:
    """Each test counts its own cases, and not those that are thorough in any case."""
    source = """
        import pytest

        @pytest.mark.one_of(3)
        @pytest.mark.parametrize("n", [pytest.param(0, marks=pytest.mark.thorough), *range(1, 8)])
        def test_first(n): ...

        @pytest.mark.one_of(2)
        @pytest.mark.parametrize("n", range(3))
        def test_second(n): ...

        @pytest.mark.one_of(2)
        @pytest.mark.parametrize("n", ["lora-1", "lora-2", "oft-1", "oft-2", "ia3"])
        def test_words(n): ...

        @pytest.mark.parametrize("n", range(3))
        def test_all(n): ...
    """
    left_out = [f"test_first[{n}]" for n in (0, 2, 4, 5, 7)] + ["test_second[1]"]
    left_out += ["test_words[lora-2]", "test_words[oft-2]"]
    assert thorough(source, pytester) == left_out
