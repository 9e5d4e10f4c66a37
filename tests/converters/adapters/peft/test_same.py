"""Values that PEFT's config stores once for all sites."""

from types import SimpleNamespace
from typing import Any

import pytest

from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out, refuse_unless
from jaxmix.errors import UnsupportedError

from ....messages import full_text


def test_equal_value_is_returned_as_it_is() -> None:
    """Also None, and a false value."""
    assert equal_value({"a": None, "b": None}, "alpha", lambda update: update) is None
    assert equal_value({"a": 0}, "alpha", lambda update: update) == 0


def test_sites_are_listed_by_value() -> None:
    """In the order of the sites, with all sites of a value in one line."""
    message = full_text(
        "PEFT's config has one alpha for all sites, and these differ:\n  2: a, c\n  None: b\n"
        "Export them as separate adapters."
    )
    with pytest.raises(UnsupportedError, match=message):
        equal_value({"a": 2, "b": None, "c": 2}, "alpha", lambda update: update)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((), False), ((False, False), False), ((False, True), True), ((None, False), True)],
)
def test_flag_is_on_unless_all_sites_are_known(values: tuple[Any, ...], expected: bool) -> None:
    """None is unknown; with the flag off, PEFT would not transpose such a layer."""
    updates = {str(i): SimpleNamespace(transposed=value) for i, value in enumerate(values)}
    assert fan_in_fan_out(updates) is expected


def test_only_sites_that_do_not_fit_are_listed() -> None:
    """The problem is the caller's."""
    updates = {"a": 1, "b": -1, "c": 0}
    refuse_unless(updates, lambda update: update < 2, "never")
    with pytest.raises(UnsupportedError, match=full_text("not positive:\n  b\n  c")):
        refuse_unless(updates, lambda update: update > 0, "not positive")
