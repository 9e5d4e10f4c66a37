"""LoRAs combined factor by factor."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix import Adapter, mix
from jaxmix.combining.factors import combined_factors, have_factors
from jaxmix.combining.formulas import Options
from jaxmix.combining.methods import METHODS
from jaxmix.errors import AdapterError
from jaxmix.families import IA3, LoRA

from ..messages import full_text


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def lora(rank: int = 2, seed: int = 0, **options: Any) -> LoRA:
    return LoRA(normal(rank, 6, seed=seed), normal(4, rank, seed=seed), 0.5, **options)


def combined(*adapters: Adapter, weights: Any, method: str = "linear") -> dict[str, LoRA]:
    return combined_factors(adapters, weights, METHODS[method], Options(density=0.5), None)


@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_sign_is_applied_to_the_factor_that_peft_calls_a(is_embedding: bool) -> None:
    """Weight, strength and scale are multiplied, and each factor gets the root of the size."""
    options = {"embedding": is_embedding}
    one, two = lora(**options), lora(2, 1, **options)
    adapters = Adapter({"a": one}, 4.0, "one"), Adapter({"a": two}, 1.0, "two")
    made = combined(*adapters, weights=[0.5, -2.0])["a"]
    # 0.5 · 4 · 0.5 = 1 and −2 · 1 · 0.5 = −1
    sign_a, sign_b = (1, -1) if is_embedding else (-1, 1)
    np.testing.assert_allclose(made.a, one.a + sign_a * two.a, rtol=1e-12)
    np.testing.assert_allclose(made.b, one.b + sign_b * two.b, rtol=1e-12)
    assert made.scale == 1 and made.embedding == is_embedding and made.bias is None


def test_a_site_of_one_adapter_is_combined_alone() -> None:
    """And a bias that only one adapter has is combined with zeros."""
    first = Adapter({"a": lora(bias=normal(4)), "b": lora()}, name="one")
    second = Adapter({"a": lora(2, 1)}, name="two")
    made = combined(first, second, weights=[2.0, -1.0])
    assert list(made) == ["a", "b"]
    np.testing.assert_allclose(made["b"].b @ made["b"].a, lora().b @ lora().a, rtol=1e-12)
    bias = made["a"].bias
    assert bias is not None
    np.testing.assert_allclose(bias, normal(4), rtol=1e-12)
    assert made["b"].bias is None


def test_every_site_with_unequal_ranks_is_listed() -> None:
    first = Adapter({"a": lora(2), "b": lora(1), "c": lora(3)}, name="one")
    second = Adapter({"a": lora(2, 1), "b": lora(2), "c": lora(1)}, name="two")
    message = (
        "the method 'linear' adds the factors of LoRAs, but these have different ranks:\n"
        "  b: [1, 2]\n  c: [3, 1]\nExpected equal ranks. Use 'svd' or 'cat' instead."
    )
    with pytest.raises(AdapterError, match=full_text(message)):
        combined(first, second, weights=[1.0, 1.0])


def test_only_single_adapters_of_plain_loras_have_factors() -> None:
    """A mix is a sum of products, and a DoRA divides by norms of the base."""
    plain = Adapter({"a": lora()}, name="one")
    assert have_factors([plain, plain]) and have_factors([plain, mix(plain)])
    assert not have_factors([plain, mix(plain, plain.renamed("two"))])
    for update in (lora(magnitude=normal(4)), IA3(normal(4))):
        assert not have_factors([plain, Adapter({"a": update}, name="other")])


def test_sites_have_their_own_random_entries() -> None:
    """And the factors of one site too, which have one key."""
    square = LoRA(np.ones((8, 8)), np.ones((8, 8)), 1.0)
    adapter = Adapter(dict.fromkeys("ab", square), name="one")
    options, method = Options(density=0.5), METHODS["dare_linear"]
    key = jax.random.key(0)
    made = combined_factors([adapter], [1.0], method, options, key)
    kept = [np.asarray(x != 0) for update in made.values() for x in (update.a, update.b)]
    assert len({x.tobytes() for x in kept}) == 4
