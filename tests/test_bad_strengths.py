"""Invalid strengths, names and adapters passed to public functions."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError
from jaxmix.errors import AdapterError

from .converters.adapters.peft.folders import save
from .messages import full_text
from .test_bad_input import BASE, lora

NOT_STRENGTHS = {
    "text": "1",
    "bool": True,
    "complex": 1j,
    "nan": float("nan"),
    "infinite": -float("inf"),
    "list": [1.0],
    "nested": [[1.0], [1.0]],
    "array": np.ones(2),
    "one": np.ones(1),
    "jax": jnp.ones((1, 1)),
    "jax bool": jnp.array(True),
    "jax nan": jnp.array(jnp.nan),
    "object": object(),
    "numpy bool": np.bool_(True),
    "type": float,
    "dict": {},
}
WAYS = {
    "load": lambda strength, folder: jaxmix.load(folder, strength=strength),
    "times": lambda strength, folder: lora() * strength,
    "from the left": lambda strength, folder: strength * lora(),
    "mix times": lambda strength, folder: jaxmix.mix(lora()) * strength,
    "mix": lambda strength, folder: jaxmix.mix(lora(), strength=strength),
}


# `mix` takes one strength for each argument too: see below.
SEVERAL = ("list", "nested", "array", "one")
CASES = [
    (way, name) for way in WAYS for name in NOT_STRENGTHS if way != "mix" or name not in SEVERAL
]


@pytest.mark.parametrize(("way", "name"), CASES)
def test_invalid_strengths_are_refused(way, name, tmp_path):
    """The error shows the value, what is expected, and how to pass several."""
    strength = NOT_STRENGTHS[name]
    with pytest.raises(JaxmixError) as caught:
        WAYS[way](strength, save(tmp_path))
    assert caught.type is AdapterError
    message = str(caught.value)
    assert message.startswith("a strength is ")
    assert "expected a real number or an array without axes" in message or message.endswith(
        ", expected a finite number."
    )


@pytest.mark.parametrize(
    "strength",
    [
        2,
        -0.5,
        0.0,
        np.float32(2),
        np.int8(3),
        jnp.float32(2),
        jnp.int32(2),
        ml_dtypes.bfloat16(0.5),
    ],
)
def test_valid_strengths_of_every_library(strength, tmp_path):
    """Real scalars of every library are accepted."""
    for way in WAYS.values():
        (part,) = way(strength, save(tmp_path)).parts
        assert float(part.strength) == float(strength)


def test_number_of_strengths_must_match():
    """The error states both numbers."""
    for count in (0, 1, 3):
        with pytest.raises(
            AdapterError,
            match=full_text(
                f"mix got a list of strengths of length {count}, expected 2, one for each adapter, "
                "or a single number for all."
            ),
        ):
            jaxmix.mix(lora(name="a"), lora(name="b"), strength=[1.0] * count)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "a strength is 'x', expected a real number or an array "
            "without axes. For one strength per adapter write mix(a, b, "
            "strength=[…])."
        ),
    ):
        jaxmix.mix(lora(name="a"), lora(name="b"), strength=[1.0, "x"])


# ------------------------------------------------------------------------------ adapters, names


@pytest.mark.parametrize(
    "make",
    [
        lambda: jaxmix.mix(lora(), lora()),
        lambda: jaxmix.mix(jaxmix.mix(lora()), 2 * lora()),
        lambda: jaxmix.compose(BASE, [lora(), lora()]),
        lambda: jaxmix.mix(jaxmix.mix(lora(), lora(name="b")), jaxmix.mix(lora(name="c"), lora())),
    ],
)
def test_duplicate_names_are_refused(make):
    """The error names the duplicate and two ways to rename an adapter."""
    with pytest.raises(AdapterError) as caught:
        make()
    assert str(caught.value) == (
        "two adapters of a mix have the name 'style'. Give each its own: "
        "jaxmix.load(…, name='other') or adapter.renamed('other')."
    )


@pytest.mark.parametrize("value", ["folder", None, 3, [lora()], {"a": 1}, BASE])
def test_values_that_are_not_adapters_are_refused(value):
    """The error shows the value's type and how to load an adapter."""
    kind = type(value).__name__
    for make, expected in (
        (lambda: jaxmix.mix(value), rf"mix got {kind} .*, expected adapters and mixes"),
        (
            lambda: jaxmix.compose(BASE, [value]),
            rf"compose got for its adapters:\n  0: {kind} .*\nExpected an adapter",
        ),
    ):
        with pytest.raises(AdapterError) as caught:
            make()
        assert re.match(expected, str(caught.value))
        assert "Read one with jaxmix.load" in str(caught.value)
