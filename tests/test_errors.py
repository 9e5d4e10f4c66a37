"""Exceptions, and the parts of their messages that depend on who reads them."""

import pytest

from jaxmix import errors
from jaxmix.errors import JaxmixError, listing, option, remedy, spelling, to_lora_call


def test_all_exceptions_are_value_errors() -> None:
    """One `except` catches all of them; the warning is not an error."""
    kinds = [value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)]
    raised = [kind for kind in kinds if not issubclass(kind, Warning)]
    assert len(raised) == len(kinds) - 1 > 5
    assert all(issubclass(kind, JaxmixError) and issubclass(kind, ValueError) for kind in raised)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (2, "\n  0\n  1"), (3, "\n  0\n  1\n  2"), (5, "\n  0\n  1\n  2\n  … and 2 more")],
)
def test_long_lists_are_counted(count: int, text: str) -> None:
    """Lines may come from an iterator, of which each is taken once."""
    assert listing(map(str, range(count)), limit=3) == text


def test_options_are_spelled_as_they_are_written() -> None:
    assert option("force") == "force=True"
    assert option("file", "it's") == """file="it's\""""
    assert option("scale", ..., of="load(path") == "load(path, scale=…)"
    assert to_lora_call() == "jaxmix.to_lora(adapter, params)"


def test_a_spelling_holds_within_its_block_only() -> None:
    """Blocks may be nested, and end with an exception too."""

    def python() -> bool:
        return option("rank", 4) == "rank=4" and remedy("a", "b") == "a"

    with spelling(lambda name, value: f"--{name} {value}"):
        assert option("rank", 4, of="load(path") == "--rank 4" and remedy("a", "b") == "b"
        with pytest.raises(KeyError), spelling(lambda name, value: f"/{name}"):
            assert to_lora_call() == "/rank"
            raise KeyError
        assert option("out", ...) == "--out …" and to_lora_call("mix") == "--rank …"
    assert python()
