"""`combine` without a base refuses adapters that name their modules differently."""

import warnings

import numpy as np
import pytest

from jaxmix import Adapter, combine
from jaxmix.combining import look_alikes, look_alikes_text, partial_sites, partial_text
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA

from ..messages import full_text

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
    message = str(caught.value)
    assert "combine got adapters without a base, and they share no site:" in message
    assert f"a: {OLD.format(0)}, {OLD.format(1)}, {OLD.format(2)} …" in message
    assert f"b: {NEW.format(0)}\n" in message
    assert message.endswith(
        "\nDo their files use two names for one module, such as language_model.model.layers and "
        "model.language_model.layers? Then rename the sites of one. If they are for different "
        "modules, pass the base (combine(adapters, params, …)), or mix them instead."
    )
    for method, rank in (("cat", None), ("svd", 1)):
        with pytest.raises(
            AdapterError,
            match=full_text(
                "combine got adapters without a base, and they share no "
                "site:\n"
                "  a: language_model.model.layers.0.q_proj, "
                "language_model.model.layers.1.q_proj, "
                "language_model.model.layers.2.q_proj …\n"
                "  b: model.language_model.layers.0.q_proj\n"
                "Do their files use two names for one module, such as "
                "language_model.model.layers and "
                "model.language_model.layers? Then rename the sites of one. "
                "If they are for different modules, pass the base "
                "(combine(adapters, params, …)), or mix them instead."
            ),
        ):
            combine([a, b], method=method, rank=rank)


def test_adapter_that_shares_no_site_is_named():
    """Adapters with equal names are distinguished by their numbers."""
    pair = [lora("a", "x"), lora("a", "x")]
    with pytest.raises(
        AdapterError,
        match=full_text(
            "combine got adapters without a base, and c shares no site "
            "with the others:\n"
            "  a (number 1): x\n"
            "  a (number 2): x\n"
            "  c: y\n"
            "Do their files use two names for one module, such as "
            "language_model.model.layers and "
            "model.language_model.layers? Then rename the sites of one. "
            "If they are for different modules, pass the base "
            "(combine(adapters, params, …)), or mix them instead."
        ),
    ):
        combine([*pair, lora("c", "y")], method="linear")
    with pytest.raises(
        AdapterError,
        match=full_text(
            "combine got adapters without a base, and a (number 3) "
            "shares no site with the others:\n"
            "  a (number 1): x\n"
            "  a (number 2): x\n"
            "  a (number 3): y\n"
            "Do their files use two names for one module, such as "
            "language_model.model.layers and "
            "model.language_model.layers? Then rename the sites of one. "
            "If they are for different modules, pass the base "
            "(combine(adapters, params, …)), or mix them instead."
        ),
    ):
        combine([*pair, lora("a", "y")], method="linear")


def test_with_a_base_modules_may_differ():
    """With a base each site has its own leaf."""
    params = {f"{site}.weight": np.zeros((2, 3), np.float32) for site in "xy"}
    combined = combine([lora("a", "x"), lora("b", "y")], params, method="linear")
    assert set(combined.sites) == {"x", "y"}


def test_single_adapter():
    """A single adapter has no others to share sites with, and is accepted."""
    assert combine([lora("a", "x")], method="linear").sites == ("x",)


def test_sites_of_only_some_adapters():
    """The other adapters count as no change at these sites, without a warning."""
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
    ("name", "alias"), [(OLD.format(1), NEW.format(1)), ("embed", "model.embed")]
)
def test_two_names_of_one_module_warn(name, alias):
    """Adapters that share some sites and have similar names for others cause a warning."""
    adapters = [lora("a", "shared", name), lora("b", "shared", alias)]
    assert look_alikes(adapters) == [(name, alias)]
    message = (
        "combine without a base: different adapters change sites that may be one module under two "
        f"names: {name} and {alias}. They are combined as different modules. If they are one, "
        "rename the sites; if not, pass the base to combine without this warning."
    )
    with pytest.warns(UserWarning, match=full_text(message)):
        combine(adapters, method="linear")


def test_many_pairs_are_counted():
    """The warning shows the first pairs and counts the others."""
    assert look_alikes_text([("a", "b")] * 7).endswith("a and b; and 2 more.")


@pytest.mark.parametrize(("name", "similar"), [("up.0.q", "down.0.q"), ("mid.to_q", "up.to_q")])
def test_other_modules_do_not_warn(name, similar):
    """Names that only end alike are different modules."""
    combine([lora("a", "s", name), lora("b", "s", similar)], method="linear")
