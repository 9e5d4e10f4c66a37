"""`full_text` accepts one message only, so a test that uses it can fail."""

import pytest

from .messages import full_text

MESSAGE = "q.weight (2, 3): expected a vector.\nWas the file edited?"


def test_message_itself_matches() -> None:
    with pytest.raises(ValueError, match=full_text(MESSAGE)):
        raise ValueError(MESSAGE)


@pytest.mark.parametrize(
    "other",
    [MESSAGE[:-1], f"{MESSAGE}\n", f"a: {MESSAGE}", MESSAGE.replace(".", "x"), ""],
    ids=["shorter", "another line", "longer", "other characters", "empty"],
)
def test_other_messages_do_not_match(other: str) -> None:
    with pytest.raises(AssertionError, match="did not match"):
        with pytest.raises(ValueError, match=full_text(MESSAGE)):
            raise ValueError(other)
