"""`attach`, `detach`, `factored` and `explain`: round trips and refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import (
    AdapterError,
    LayoutError,
    ShapeError,
)
from jaxmix.families import OFT, LoRA, Replace, Tokens
from jaxmix.models import Decoder, read_config

from ..laws.crowd import UPDATES, base
from ..messages import full_text


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def lora(inputs: int = 6, outputs: int = 4, **options: Any) -> LoRA:
    return LoRA(normal(2, inputs), normal(outputs, 2), 0.5, **options)


PARAMS = {"a.weight": normal(4, 6), "a.bias": normal(4), "b.weight": normal(4, 4)}


def are_equal(left: Any, right: Any) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_detach_is_the_inverse_of_attach() -> None:
    """For all families, leaves are the same objects and adapters have the same numbers."""
    params = base(UPDATES)
    first = Adapter(UPDATES, 0.3, name="first", source="here")
    second = Adapter(UPDATES, jnp.float32(0.7), name="second")
    with jax.enable_x64(True):
        detached_params, adapters = jaxmix.detach(jaxmix.attach(params, [first, second]))
    assert all(detached_params[name] is leaf for name, leaf in params.items())
    for detached, original in zip(adapters, (first, second), strict=True):
        assert (detached.name, detached.source) == (original.name, original.source)
        assert type(detached.strength) is type(original.strength) and are_equal(detached, original)


def test_leaves_without_adapters_are_the_same_objects() -> None:
    leaves = jaxmix.attach(PARAMS, Adapter({"a": lora()}))
    assert leaves["b.weight"] is PARAMS["b.weight"] and leaves["a.bias"] is PARAMS["a.bias"]
    assert jaxmix.attach(PARAMS, []) is PARAMS
    assert repr(leaves["a.weight"]) == "Factored (4, 6) float32: LoRA rank 2"


def test_transposed_updates_round_trip() -> None:
    """Full weights are transposed for PyTorch weights (in, out), and transposed back."""
    replacement = Replace(normal(6, 4))
    params = {"a.weight": normal(6, 4), "a.bias": normal(4)}
    _, (detached,) = jaxmix.detach(jaxmix.attach(params, Adapter({"a": replacement})))
    assert are_equal(detached.updates["a"], replacement)


def test_copies_without_a_leaf_round_trip() -> None:
    """A tied model has no leaf for the head's tokens."""
    tokens = Tokens(normal(2, 4), jnp.array([1, 3]))
    copy = Tokens(normal(2, 4), jnp.array([1, 3]), is_copy=True)
    adapter = Adapter({"embed_tokens": tokens, "lm_head": copy}, 0.5)
    leaves = jaxmix.attach({"embed_tokens.weight": normal(9, 4)}, adapter)
    _, (detached,) = jaxmix.detach(leaves)
    assert are_equal(detached, adapter)


def test_tied_model_is_untied() -> None:
    config = read_config(
        dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        | dict(num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True)
    )
    model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    site = "model.embed_tokens"
    adapter = Adapter({site: LoRA(normal(2, 8), normal(11, 2), 0.5, embedding=True)})
    tokens = jnp.array([[1, 2, 10]])
    leaves = jaxmix.attach(model, adapter)
    actual = jax.jit(jaxmix.factored(lambda model, t: model(t)))(leaves, tokens)
    np.testing.assert_allclose(actual, jaxmix.compose(model, adapter)(tokens), atol=1e-6)


def test_ready_operators_are_computed_once() -> None:
    """The program no longer solves for the rotation."""
    mixed = jaxmix.mix(
        Adapter({"a": OFT(normal(3, 1))}, name="oft"), Adapter({"a": lora()}, 0.5, name="lora")
    )
    leaves = jaxmix.attach(PARAMS, mixed, ready=True)

    def run(params: Any, x: Any) -> Any:
        return x @ params["a.weight"].T

    x, factored = normal(3, 6), jaxmix.factored(run, "factored")
    np.testing.assert_allclose(
        factored(leaves, x), run(jaxmix.compose(PARAMS, mixed), x), atol=1e-5
    )
    assert "solve" not in str(jax.make_jaxpr(factored)(leaves, x))
    assert "solve" in str(jax.make_jaxpr(factored)(jaxmix.attach(PARAMS, mixed), x))
    assert are_equal(jaxmix.detach(leaves)[1], list(mixed.parts))


def test_invalid_arguments_are_refused() -> None:
    adapter = Adapter({"a": lora()})
    leaves = jaxmix.attach(PARAMS, adapter)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "attach: the params have adapters attached already, expected "
            "a base. Take them off with jaxmix.detach and attach all "
            "together, in order: attach(params, [first, second])."
        ),
    ):
        jaxmix.attach(leaves, adapter)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "attach got int 3 for its adapters, expected an adapter, a "
            "mix, or a list of them. Read one with jaxmix.load, and "
            "write attach(params, [a, b])."
        ),
    ):
        jaxmix.attach(PARAMS, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  z: no leaf for its weight; the nearest are b.weight, "
            "a.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        jaxmix.attach(PARAMS, Adapter({"z": lora()}))
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  b: lora_A has shape (2, 6), expected (2, 4) from weight "
            "(4, 4)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size?"
        ),
    ):
        jaxmix.attach(PARAMS, Adapter({"b": lora()}))
    with pytest.raises(
        AdapterError,
        match=full_text(
            "detach: no leaf has adapters attached, expected a tree from jaxmix.attach."
        ),
    ):
        jaxmix.detach(PARAMS)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "explain: no leaf has adapters attached, expected a tree from jaxmix.attach."
        ),
    ):
        jaxmix.explain(PARAMS)
    for tokens in (0, 1.5, True):
        with pytest.raises(
            AdapterError,
            match=full_text(f"explain: tokens is {tokens}, expected an integer of at least 1."),
        ):
            jaxmix.explain(leaves, tokens)  # pyright: ignore[reportArgumentType]
    message = "factored: how is 'fast', expected one of 'auto', 'factored', 'dense'."
    with pytest.raises(AdapterError, match=full_text(message)):
        jaxmix.factored(lambda x: x, "fast")  # pyright: ignore[reportArgumentType]


def test_factored_without_leaves_is_the_function() -> None:
    assert jaxmix.factored(lambda x, y: [x, y])("text", 3) == ["text", 3]


def test_other_arguments_are_passed_on() -> None:
    """Numbers, strings and None are passed by position and by name."""
    leaves = jaxmix.attach(PARAMS, Adapter({"a": lora()}))

    def run(params: Any, x: Any, factor: float, *, sign: str, none: None) -> Any:
        assert none is None
        return factor * (x @ params["a.weight"].T) if sign == "+" else None

    actual = jaxmix.factored(run)(leaves, normal(1, 6), 2.0, sign="+", none=None)
    assert actual.shape == (1, 4)
