"""Reading the fields of a config.json: values, defaults, and one error for all problems."""

from typing import Any

import pytest

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.models.config_reader import ACTIVATION_NAMES, ConfigReader

READS = {"size", "heads", "eps", "tied", "eos"}


def reader(values: dict[str, Any], refuses: dict[str, str] | None = None) -> ConfigReader:
    """Returns a reader of a small model type with one default."""
    return ConfigReader(
        values, "config.json", "tiny", reads=READS, defaults={"heads": 4}, refuses=refuses
    )


def test_absent_field_has_its_default() -> None:
    config = reader({"size": 8, "eos": None})
    assert (config.get("size"), config.get("heads"), config.get("eps")) == (8, 4, None)
    assert config.get("eos") is None
    assert (config.positive("size"), config.positive("heads"), config.positive("eps", 3)) == (
        8,
        4,
        3,
    )
    assert (config.non_negative("eps", 0), config.epsilon("eps", 1e-6)) == (0, 1e-6)
    assert (config.flag("tied"), config.ids("eos")) == (False, ())
    config.check()


def test_values_are_converted() -> None:
    config = reader({"eos": [1, 2], "size": 7, "tied": True, "eps": 0})
    assert (config.ids("eos"), config.ids("size"), config.flag("tied")) == ((1, 2), (7,), True)
    assert isinstance(config.epsilon("eps", 1.0), float) and config.epsilon("eps", 1.0) == 0
    config.check()


def test_invalid_fields_are_listed_in_one_error() -> None:
    """Booleans are not integers here, and infinity is not an epsilon."""
    config = reader({"size": True, "heads": 0, "eps": float("inf"), "tied": 1, "eos": [1, True]})
    assert (config.positive("size"), config.positive("heads")) == (1, 1)
    assert (config.non_negative("size", 0), config.epsilon("eps", 1.0)) == (0, 0.0)
    assert (config.epsilon("size", 1.0), config.flag("tied"), config.ids("eos")) == (0.0, False, ())
    config.check_divides("size", 6, "heads", 4)
    config.check_divides("size", 8, "heads", 4)
    with pytest.raises(CheckpointError) as caught:
        config.check()
    assert str(caught.value) == (
        "config.json: invalid fields:\n"
        "  size is True, expected an integer of at least 1\n"
        "  heads is 0, expected an integer of at least 1\n"
        "  size is True, expected an integer of at least 0\n"
        "  eps is inf, expected a number of at least 0\n"
        "  size is True, expected a number of at least 0\n"
        "  tied is 1, expected true or false\n"
        "  eos is [1, True], expected a token id or a list of token ids\n"
        "  size = 6 is not a multiple of heads = 4\n"
        "Was the file edited?"
    )


def test_unsupported_fields_are_listed_in_one_error() -> None:
    """They come before invalid fields; long values are cut."""
    values = {"size": -1, "novelty": 0, "long": "x" * 70, "use_cache": True, "dropout": 0.1}
    config = reader(values, {"use_cache": "it would change the outputs"})
    assert config.activation("hidden_act", "gelu_new") == "gelu_tanh"
    assert config.activation("hidden_act", ["gelu"]) == config.activation("act", "mish") == "silu"
    config.positive("size")
    with pytest.raises(UnsupportedError) as caught:
        config.check()
    known = ", ".join(ACTIVATION_NAMES)
    unknown = "not a field of tiny that this version of jaxmix knows"
    assert str(caught.value) == (
        "config.json: unsupported fields of this tiny config:\n"
        f"  novelty = 0: {unknown}\n"
        f"  long = '{'x' * 56}…: {unknown}\n"
        "  use_cache = True: it would change the outputs\n"
        f"  dropout = 0.1: {unknown}\n"
        f"  hidden_act = ['gelu']: expected one of {known}\n"
        f"  act = 'mish': expected one of {known}\n"
        "If they do not affect the forward pass, remove them from the file."
    )


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_unknown_fields_that_are_off_are_accepted(value: Any) -> None:
    reader({"novelty": value, "use_cache": True}).check()
