"""Options of a writer are refused where its format has no use for them."""

from typing import Any

import pytest
import typer

from jaxmix.converters.cli.export_options import peft_options

from ...messages import full_text


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("peft", {"base_model_name_or_path": None, "task_type": None, "patterns": False}),
        ("diffusers", {"patterns": False}),
        ("kohya", {}),
    ],
)
def test_formats_get_their_own_options(to: str, expected: dict[str, Any]) -> None:
    """The writer of each format gets only what it takes, also if no option is given."""
    assert peft_options(None, None, False, to=to) == expected
    given = {"base_model_name_or_path": "b", "task_type": "t", "patterns": True}
    assert peft_options("b", "t", True) == given
    assert peft_options(None, None, True, to="diffusers") == {"patterns": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("b", "t", True),
            "--base-name, --task-type, --patterns does not apply to the format kohya.",
        ),
        ((None, None, True), "--patterns does not apply to the format kohya."),
        (("b", None, False), "--base-name does not apply to the format kohya."),
    ],
)
def test_unused_options_are_listed(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=full_text(message)):
        peft_options(*options, to="kohya")
