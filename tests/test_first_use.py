"""Names of a package that are imported when they are first used."""

import json.decoder

import pytest

from jaxmix.first_use import importer

from .messages import full_text

GET = importer("json", {"Reader": "json.decoder", "JSONDecoder": "json.decoder"})


def test_a_name_is_an_attribute_of_its_module_or_the_module() -> None:
    assert GET("JSONDecoder") is json.JSONDecoder
    assert importer("json", {"decoder": "json.decoder"})("decoder") is json.decoder
    assert GET("scanner").__name__ == "json.scanner"


@pytest.mark.parametrize("name", ["nothing", "__path__", "_base"])
def test_unknown_and_private_names_are_attribute_errors(name: str) -> None:
    """Private modules exist, but are no attributes before something imports them."""
    message = f"module 'concurrent.futures' has no attribute '{name}'"
    with pytest.raises(AttributeError, match=full_text(message)):
        importer("concurrent.futures", {})(name)


def test_a_wrong_home_is_an_error() -> None:
    """It is not taken for a module of the package."""
    message = "module 'json.decoder' has no attribute 'Reader'"
    with pytest.raises(AttributeError, match=full_text(message)):
        GET("Reader")
