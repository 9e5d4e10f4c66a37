"""Misspelled strengths: the whole message, and what is no strength at all."""

from pathlib import Path

import pytest
import typer

from jaxmix.converters.cli.strengths import NUMBER, check_strength_spelling

from ...messages import full_text

_EXPECTED = "expected ADAPTER:STRENGTH with a number such as"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three adapters, one of which has a colon in its name."""
    for name in ("lora", "run:2", "run:1.0"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:abc", f"lora:abc: 'abc' is not a strength, {_EXPECTED} lora:0.5."),
        ("lora:0,5", f"lora:0,5: '0,5' is not a strength, {_EXPECTED} lora:0.5."),
        ("lora:−2", f"lora:−2: '−2' is not a strength, {_EXPECTED} lora:-2."),
        ("lora:50%", f"lora:50%: '50%' is not a strength, {_EXPECTED} lora:0.5."),
        ("lora:", f"lora:: the strength after the colon is missing, {_EXPECTED} lora:0.5."),
        (
            "lora : 2",
            f"lora : 2: a strength must follow the colon without spaces, {_EXPECTED} lora:2.",
        ),
        ("lora:1:2", f"lora:1:2 has two strengths, {_EXPECTED} lora:0.5."),
        ("lora=.5", f"lora=.5: a strength must follow a colon, {_EXPECTED} lora:.5."),
        ("lora x 0,7", f"lora x 0,7: a strength must follow a colon, {_EXPECTED} lora:0.7."),
        ("lora*", f"lora*: a strength must follow a colon, {_EXPECTED} lora:0.5."),
        ("a/b=1e-1", f"a/b=1e-1: a strength must follow a colon, {_EXPECTED} a/b:1e-1."),
        (
            "run:2",
            "run:2 is ambiguous: it is an existing path, and could mean run at strength 2. Write "
            "run:2:1 for the path, or run:2.0 for the strength.",
        ),
        # The other spelling must not be the path again.
        (
            "run:1.0",
            "run:1.0 is ambiguous: it is an existing path, and could mean run at strength 1.0. "
            "Write run:1.0:1 for the path, or run:1.0.0 for the strength.",
        ),
    ],
)
def test_misspelled_strengths_are_refused(text: str, message: str) -> None:
    """The advice has the number that was meant, if there is one."""
    with pytest.raises(typer.BadParameter, match=full_text(message)):
        check_strength_spelling(text)


@pytest.mark.parametrize(
    "text",
    [
        *("lora", "lora:-1", "lora:+.5e2", "run:2:0.5", "./lora:1", "owner/name", "owner/name:2"),
        "C:\\adapters\\lora",
        "owner/name@main",  # a revision
        "nothing here:1",  # no path before the sign: the reader reports that it does not exist
        "a\0b:1",
    ],
)
def test_other_arguments_are_left_to_the_reader(text: str) -> None:
    check_strength_spelling(text)


def test_numbers_are_decimal() -> None:
    """Neither NaN, infinity, nor Python's other forms."""
    numbers = ("1", "-.5", "+2.", "1e-3")
    others = ("", ".", "nan", "inf", "1_0", "0x1", "1e", "--1")
    assert all(map(NUMBER.fullmatch, numbers)) and not any(map(NUMBER.fullmatch, others))
