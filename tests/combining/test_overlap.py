"""`combine` without a base: adapters that name their modules differently are not combined."""

import warnings

import numpy as np
import pytest

from jaxmix import Adapter, combine
from jaxmix.combining import look_alikes, look_alikes_text, partial_sites, partial_text
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA

OLD, NEW = "language_model.model.layers.{}.q_proj", "model.language_model.layers.{}.q_proj"


def lora(name: str, *sites: str) -> Adapter:
    """A LoRA at these sites."""
    return Adapter({site: LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0) for site in sites}, name=name)


def test_no_shared_site_is_an_error():
    """Each adapter is listed with some of its sites."""
    a = lora("a", *(OLD.format(i) for i in range(4)))
    b = lora("b", NEW.format(0))
    with pytest.raises(AdapterError) as caught:
        combine([a, b], method="linear")
    text = str(caught.value)
    assert "combine got adapters without a base, and they share no site:" in text
    assert f"a: {OLD.format(0)}, {OLD.format(1)}, {OLD.format(2)} …" in text
    assert f"b: {NEW.format(0)}\n" in text
    assert "two names for one module" in text and "pass the base" in text and "--base" in text
    for method, rank in (("cat", None), ("svd", 1)):
        with pytest.raises(AdapterError, match="share no site"):
            combine([a, b], method=method, rank=rank)


def test_adapter_that_shares_no_site_is_named():
    """With equal names it is named by its number."""
    pair = [lora("a", "x"), lora("a", "x")]
    with pytest.raises(AdapterError, match=r"and c shares no site with the others"):
        combine([*pair, lora("c", "y")], method="linear")
    with pytest.raises(AdapterError, match=r"a \(number 3\) shares no site with the others"):
        combine([*pair, lora("a", "y")], method="linear")


def test_with_a_base_modules_may_differ():
    """With a base each site has its own leaf."""
    params = {f"{site}.weight": np.zeros((2, 3), np.float32) for site in "xy"}
    made = combine([lora("a", "x"), lora("b", "y")], params, method="linear")
    assert set(made.sites) == {"x", "y"}


def test_single_adapter():
    """It has no other adapters to share sites with, which is no error."""
    assert combine([lora("a", "x")], method="linear").sites == ("x",)


def test_sites_of_only_some_adapters():
    """They count as unchanged in the other adapters, without a warning."""
    adapters = [lora("a", "h.0.q", "h.0.k"), lora("b", "h.0.q", "h.1.k")]
    partial = partial_sites(adapters)
    assert partial == {"h.0.k": ("a",), "h.1.k": ("b",)}
    assert partial_text(partial, 3) == (
        "2 of 3 sites are changed by some of the adapters only, and the others count as no change "
        "there: h.0.k (a); h.1.k (b)."
    )
    assert partial_text({str(i): ("a",) for i in range(7)}, 9).endswith("4 (a); and 2 more.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(combine(adapters, method="linear").sites) == 3


@pytest.mark.parametrize(
    ("one", "other"), [(OLD.format(1), NEW.format(1)), ("embed", "model.embed")]
)
def test_two_names_of_one_module_warn(one, other):
    """Some sites are shared and others look alike."""
    adapters = [lora("a", "shared", one), lora("b", "shared", other)]
    assert look_alikes(adapters) == [(one, other)]
    with pytest.warns(UserWarning, match=f"two names: {one} and {other}. They are combined as"):
        combine(adapters, method="linear")


def test_many_pairs_are_counted():
    """Only the first are shown."""
    assert look_alikes_text([("a", "b")] * 7).endswith("a and b; and 2 more.")


@pytest.mark.parametrize(("one", "other"), [("up.0.q", "down.0.q"), ("mid.to_q", "up.to_q")])
def test_other_modules_do_not_warn(one, other):
    """Their names merely end alike."""
    combine([lora("a", "s", one), lora("b", "s", other)], method="linear")
