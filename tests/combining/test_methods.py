"""The table of methods, and the check that each option is used by its method."""

from typing import Any

import pytest

from jaxmix.combining.formulas import Options
from jaxmix.combining.methods import METHODS, checked_options
from jaxmix.errors import AdapterError

from ..messages import full_text


def checked(method: Any, count: int = 2, **given: Any) -> Options:
    options: dict[str, Any] = dict.fromkeys(("density", "key", "majority_sign", "outliers"))
    options |= {"has_weights": False, "has_rank": False, **given}
    chosen, found = checked_options(method, count, **options)
    assert chosen is METHODS[method]
    return found


def test_each_method_on_factors_has_one_by_svd() -> None:
    """It takes the same options, so a message can name it instead."""
    pairs = [(m, METHODS[m.by_svd]) for m in METHODS.values() if m.on_factors]
    assert len(pairs) == 5
    for on_factors, by_svd in pairs:
        assert by_svd.svd and not by_svd.on_factors and by_svd.formula is on_factors.formula
        for need in ("prunes", "random", "votes", "crops", "weighted", "counts"):
            assert getattr(by_svd, need) == getattr(on_factors, need)
    assert all(name == method.name for name, method in METHODS.items())


def test_absent_options_have_their_defaults() -> None:
    """A method that prunes nothing keeps every entry."""
    assert checked("linear") == Options(1.0, "total", 0.01)
    assert checked("ties", density=1, majority_sign="frequency") == Options(1, "frequency", 0.01)
    assert checked("breadcrumbs", density=0.5, outliers=0) == Options(0.5, "total", 0.0)


@pytest.mark.parametrize("rank", [False, True])
def test_a_key_is_used_by_random_methods_and_an_svd_only(rank: bool) -> None:
    given = {"key": 0, "has_rank": rank}
    for method, needs in METHODS.items():
        density = {"density": 0.5} if needs.prunes else {}
        if needs.random or needs.svd or rank:
            checked(method, **given, **density)
        else:
            message = (
                f"the method {method!r} does not use key. Leave it out, or use another method."
            )
            with pytest.raises(AdapterError, match=full_text(message)):
                checked(method, **given, **density)


@pytest.mark.parametrize("density", [0, -0.5, 1.5, float("nan"), True, "0.5"])
def test_a_share_is_a_real_number_up_to_one(density: Any) -> None:
    message = (
        f"the method 'ties' got density={density!r}, expected the share of the entries that it "
        "keeps, above 0 and at most 1."
    )
    with pytest.raises(AdapterError, match=full_text(message)):
        checked("ties", density=density)
