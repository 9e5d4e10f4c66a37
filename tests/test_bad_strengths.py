"""Bad strengths, names and things that are no adapters, through the face."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError
from jaxmix.errors import AdapterError

from .converters.adapters.peft.folders import save
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
def test_a_strength_that_is_no_real_scalar(way, name, tmp_path):
    """What it is, what is expected, what to write for several."""
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
def test_a_strength_that_is_one(strength, tmp_path):
    """Numbers of every library."""
    for way in WAYS.values():
        (part,) = way(strength, save(tmp_path)).parts
        assert float(part.strength) == float(strength)


def test_as_many_strengths_as_arguments():
    """How many there are of each."""
    for count in (0, 1, 3):
        with pytest.raises(
            AdapterError, match=rf"mix got {count} strengths for 2 adapters, expected"
        ):
            jaxmix.mix(lora(name="a"), lora(name="b"), strength=[1.0] * count)
    with pytest.raises(AdapterError, match=r"a strength is 'x', expected a real number"):
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
def test_a_name_twice(make):
    """Which, and two ways to give another."""
    with pytest.raises(AdapterError) as caught:
        make()
    assert str(caught.value) == (
        "two adapters of a mix have the name 'style'. Give each its own: "
        "jaxmix.load(…, name='other') or adapter.renamed('other')."
    )


@pytest.mark.parametrize("thing", ["folder", None, 3, [lora()], {"a": 1}, BASE])
def test_no_adapter(thing):
    """What it is, and how to get one."""
    kind = type(thing).__name__
    for make, expected in (
        (lambda: jaxmix.mix(thing), rf"mix got {kind} .*, expected adapters and mixes"),
        (
            lambda: jaxmix.compose(BASE, [thing]),
            rf"compose got for its adapters:\n  0: {kind} .*\nExpected an adapter",
        ),
    ):
        with pytest.raises(AdapterError) as caught:
            make()
        assert re.match(expected, str(caught.value))
        assert "Read one with jaxmix.load" in str(caught.value)
