"""An adapter's hash depends on its families, fields and arrays, and on nothing else."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters.mixfile.hashing import fingerprint
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace

from ....messages import full_text

PINNED = "af6db2b8c1079f3b1aa44cf73bb02da996dfad983d65f228522acf3a3eac2da5"


def lora(seed: int = 0, dtype: Any = np.float32, **more: Any) -> LoRA:
    """Returns a LoRA for a weight (5, 4)."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4)).astype(dtype), rng.normal(size=(5, 2)).astype(dtype)
    return LoRA(a, b, 0.1 + 0.2, **more)


def test_hash_covers_families_fields_and_bytes() -> None:
    """The hash covers families, fields and bytes, not name, strength, source or order of sites."""
    updates = {"a": lora(), "b": lora(1)}
    base = Adapter(updates)
    same = Adapter(dict(reversed(updates.items())), 0.5, "other", "source")
    assert fingerprint(base) == fingerprint(same)
    others = [
        Adapter({"a": lora(), "c": lora(1)}),
        Adapter({"a": lora(), "b": lora(2)}),
        Adapter({"a": lora(), "b": lora(1, np.float64)}),
        Adapter({"a": lora(), "b": replace(lora(1), scale=0.3)}),
        Adapter({"a": lora(), "b": replace(lora(1), transposed=True)}),
        Adapter({"a": lora(), "b": replace(lora(1), a=lora(1).a.reshape(4, 2))}),
        Adapter({"a": lora()}),
        jaxmix.mix(base),
        jaxmix.mix(0.5 * base),
    ]
    assert len({fingerprint(other) for other in [base, *others]}) == len(others) + 1
    # Pinned, because files written today must stay loadable.
    pinned = Adapter({"a": LoRA(np.ones((1, 2), np.float32), np.ones((3, 1)), 0.5)})
    assert fingerprint(pinned) == PINNED


def test_hash_of_a_mix_covers_order_and_strengths() -> None:
    """It does not depend on the strength of the whole, or on names."""
    first, second = Adapter({"a": lora()}, name="a"), Adapter({"a": lora(1)}, name="b")
    mixed = jaxmix.mix(first, 0.5 * second)
    assert fingerprint(mixed) == fingerprint(jaxmix.mix(first.renamed("x"), 0.5 * second))
    others = [
        jaxmix.mix(0.5 * second, first),
        jaxmix.mix(first, 0.25 * second),
        jaxmix.mix(first, 0.5 * first.renamed("b")),
    ]
    assert len({fingerprint(mix) for mix in [mixed, *others]}) == len(others) + 1


def test_equal_bytes_of_two_dtypes_differ() -> None:
    bits = np.arange(6, dtype=np.int16).reshape(2, 3)
    hashes = {
        fingerprint(Adapter({"a": Replace(bits.view(dtype))}))
        for dtype in (np.float16, ml_dtypes.bfloat16)
    }
    assert len(hashes) == 2


def test_each_array_is_hashed_once() -> None:
    """The cache has an entry for each array, and its entries are used."""
    adapter, digests = Adapter({"a": lora()}), {}
    expected = fingerprint(adapter, digests)
    assert set(digests) == {id(adapter.updates["a"].a), id(adapter.updates["a"].b)}
    assert fingerprint(adapter, digests) == expected
    assert fingerprint(adapter, dict.fromkeys(digests, "0" * 64)) != expected


def test_update_that_cannot_be_written() -> None:
    with pytest.raises(
        AdapterError,
        match=full_text(
            "factors that are not arrays of numbers:\n"
            "  a: weight has dtype complex64, expected float64, float32, "
            "float16 or bfloat16\n"
            "Expected NumPy or JAX arrays of floats, and a finite number "
            "or an array without axes as scale."
        ),
    ):
        fingerprint(Adapter({"a": Replace(np.ones((2, 2), np.complex64))}))
