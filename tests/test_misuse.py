"""Wrong objects for params, adapters, shardings and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix import Adapter, Bank, compose, mix
from jaxmix.converters.checkpoints.sharded_reading import load_params
from jaxmix.errors import AdapterError, LayoutError, UnsupportedError
from jaxmix.families import LoRA

from .messages import full_text

LORA = LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)
ADAPTER = Adapter({"proj": LORA}, name="lora")
PARAMS = {"proj.weight": jnp.zeros((2, 3))}


def project(params, x):
    return x @ params["proj.weight"].T


def test_bank_of_a_path_is_refused():
    """A path in place of a bank's params is refused."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the params are the path 'try/base', expected a pytree of weights: a dict of arrays, "
            "an nnx.Module or its state, an Equinox module. Read a checkpoint with "
            "jaxmix.models.read_tensors(folder), or merge it on disk with "
            "jaxmix.merge_checkpoint(folder, adapters, out)."
        ),
    ):
        Bank({"one": ADAPTER}, "try/base")


def test_result_of_fit_is_refused_with_advice():
    """A `fit` result in place of an adapter is refused, and the error names its mix."""

    def loss(params, expected):
        return jnp.sum((params["proj.weight"] - expected) ** 2)

    result = jaxmix.fit(ADAPTER, PARAMS, loss, [jnp.ones((2, 3))], how="dense", progress=False)
    shown = "Fit Fit(mix=mix of 1 adapter, applied in this order: 1. lora:…"
    for adapters, where in (
        (result, f"{shown} for its adapters, e"),
        ([result], f"for its adapters:\n  0: {shown}\nE"),
    ):
        with pytest.raises(
            AdapterError,
            match=full_text(
                f"compose got {where}xpected an adapter, a mix, or a list of them. Its mix is an "
                "adapter: pass result.mix."
            ),
        ):
            compose(PARAMS, adapters)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "mix got Fit Fit(mix=mix of 1 adapter, applied in this "
            "order: 1. lora:…, expected adapters and mixes. Its mix is "
            "an adapter: pass result.mix."
        ),
    ):
        mix(result)
    assert compose(PARAMS, [result.mix])["proj.weight"].shape == (2, 3)


def test_all_wrong_adapters_are_listed():
    """One error lists all arguments that are not adapters."""
    with pytest.raises(AdapterError) as caught:
        compose(PARAMS, [ADAPTER, "lora", LORA, 3])
    message = str(caught.value)
    assert message.startswith("compose got for its adapters:\n  1: str 'lora'\n  2: LoRA ")
    assert "\n  3: int 3\nExpected an adapter, a mix, or a list of them. Read one with" in message
    assert message.endswith("Name the module that it updates: jaxmix.Adapter({site: update}).")


def test_names_of_rows():
    """An array of names works like a list; a single name and names under jit are refused."""
    bank = Bank({"one": ADAPTER, "two": 2 * ADAPTER}, PARAMS)
    run, x = bank(project), jnp.ones((3, 3))
    with pytest.raises(
        AdapterError,
        match=full_text(
            "who is 'one', expected one entry per row: a member's name "
            "or None, a member's number (-1 for the base), or a strength "
            "for each member. For a single row write ['one']."
        ),
    ):
        jax.jit(lambda params, x: run(params, x, "one"))(PARAMS, x)
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "names of members can't be used in a traced function that "
            "has the bank as an argument: it also runs with other "
            "members. Call bank.who([...]) outside and pass the result."
        ),
    ):
        jax.jit(lambda bank, x: bank(project)(PARAMS, x, "one"))(bank, x)
    # An array of names is a list of names.
    rows = np.array(["one", "two", "one"])
    assert run(PARAMS, x, rows)[:, 0].tolist() == [3, 6, 3]
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "names of members can't be used in a traced function that "
            "has the bank as an argument: it also runs with other "
            "members. Call bank.who([...]) outside and pass the result."
        ),
    ):
        jax.jit(lambda bank, x: bank(project)(PARAMS, x, rows))(bank, x)


@pytest.mark.parametrize(
    "shardings",
    [lambda name, outline: None, {"up.weight": None}, "x", jax.sharding.PartitionSpec()],
)
def test_invalid_shardings_are_refused(shardings, tmp_path):
    """Values that are not shardings are refused."""
    save_file({"up.weight": np.ones((4, 2))}, tmp_path / "model.safetensors")
    with pytest.raises(LayoutError) as caught:
        load_params(tmp_path, shardings, dtype=np.float32)
    message = str(caught.value)
    assert message.startswith(
        "expected a jax.sharding.Sharding for every tensor, found:\n  up.weight: "
    )
    assert message.endswith("a function of (name, outline) that returns them.")
