"""Experts run by `jax.lax.ragged_dot` stay factored and give the outputs of dense weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Layout, Rule
from jaxmix.errors import DenseWeightWarning, UnsupportedError
from jaxmix.families import IA3, OFT, ExpertLoRA, Replace, Update

from .test_uses import adapter, difference, dora, loha, lora, made_dense, normal
from .texts import dense_refusal, dense_warning

pytestmark = pytest.mark.usefixtures("no_compiling")

__all__ = ["made_dense"]

EXPERTS, TOKENS, IN, OUT = 3, 11, 6, 4
# Two tokens without an expert, and an expert without tokens.
SIZES = jnp.array([5, 0, 4])
# Experts as sites of their own, in one leaf (experts, in, out).
EACH = Layout("experts", (Rule(r"experts\.(\d+)", "experts", "i o -> o i", r"\1"),))
KERNEL = {"experts": normal(EXPERTS, IN, OUT)}
X = normal(TOKENS, IN)


def run(params: Any, x: Any) -> Any:
    return jax.lax.ragged_dot(x, params["experts"], SIZES)


USE = (
    "experts ((3, 6, 4) float32): ragged_dot_general at test_ragged.py:"
    f"{run.__code__.co_firstlineno + 1} (run)"
)


def for_each_expert(name: str, make: Callable[[], Update]) -> jaxmix.Adapter:
    """Returns an adapter with an update for each expert except the last."""
    return jaxmix.Adapter({f"experts.{i}": make() for i in range(EXPERTS - 1)}, name=name)


def expert_lora(r: int, in_first: bool) -> ExpertLoRA:
    return ExpertLoRA(normal(EXPERTS, r, IN), normal(EXPERTS, OUT, r), 0.5, in_first=in_first)


@pytest.mark.parametrize("in_first", [True, False])
def test_low_ranks_of_experts_stay_factored(in_first: bool, made_dense: list[int]) -> None:
    """PEFT's ``target_parameters``, in the leaf's axis order and transposed."""
    mixed = jaxmix.mix(
        adapter("a", experts=expert_lora(2, in_first)),
        0.3 * adapter("b", experts=expert_lora(3, in_first)),
    )

    def transposed(params: Any, x: Any) -> Any:
        return run({"experts": params["experts"].swapaxes(1, 2)}, x)

    params = KERNEL if in_first else {"experts": KERNEL["experts"].swapaxes(1, 2)}
    assert difference(run if in_first else transposed, params, mixed, X) < 2e-6
    assert made_dense == [0]


CHAINS: dict[str, tuple[Callable[[], Update], ...]] = {
    "lora": (lambda: lora(IN, OUT),),
    "dora": (lambda: dora(IN, OUT),),
    "loha, lora": (lambda: loha(IN, OUT), lambda: lora(IN, OUT)),
    "scaled inputs, lora, dora": (
        lambda: IA3(1 + normal(IN), on_input=True),
        lambda: lora(IN, OUT),
        lambda: dora(IN, OUT),
    ),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_experts_with_different_updates_stay_factored(
    chain: tuple[Callable[[], Update], ...], made_dense: list[int]
) -> None:
    """Diagonals and low ranks per expert; the last expert is unchanged."""
    mixed = jaxmix.mix(*(for_each_expert(f"part{i}", make) for i, make in enumerate(chain)))
    assert difference(run, KERNEL, mixed, X, EACH) < 2e-6
    assert made_dense == [0]


@pytest.mark.parametrize("how", ["auto", "factored", "dense"])
def test_rotations_use_the_dense_weights(how: Any, made_dense: list[int]) -> None:
    """Rotations of experts have no factored form, and a warning says so."""
    mixed = for_each_expert("oft", lambda: OFT(0.3 * normal(IN // 2, 1)))
    leaves = jaxmix.attach(KERNEL, mixed, layout=EACH)
    if how == "factored":
        with pytest.raises(
            UnsupportedError,
            match=dense_refusal(USE),
        ):
            jaxmix.factored(run, how)(leaves, X)
        return
    context = nullcontext()
    if how == "auto":
        context = pytest.warns(DenseWeightWarning, match=dense_warning(USE))
    with context:
        actual = jaxmix.factored(run, how)(leaves, X)
    expected = run(jaxmix.compose(KERNEL, mixed, layout=EACH), X)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    assert made_dense == [1]


def test_explain_reports_that_ragged_dot_needs_dense_weights() -> None:
    params = {"experts": jnp.zeros((EXPERTS, 64, 64))}
    updates: dict[str, Callable[[], Update]] = {
        "lora": lambda: lora(64, 64),
        "oft": lambda: OFT(0.3 * normal(32, 1)),
    }
    reasons = {}
    for name, update in updates.items():
        leaves = jaxmix.attach(params, for_each_expert(name, update), layout=EACH)
        (way,) = jaxmix.explain(leaves).ways
        assert way.way == "factored"
        reasons[name] = way.why
    assert reasons["lora"] == "the operators cost less than a pass over the weight"
    assert reasons["oft"] == f"{reasons['lora']}; lax.ragged_dot takes the dense weight"


def test_gradients_and_bfloat16_match() -> None:
    """Gradients by the factors match those of dense weights; sums are rounded only once."""
    mixed = adapter("a", experts=expert_lora(2, True))

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.sin(run(params, X)))

    def factored_loss(mixed: Any) -> Any:
        return jaxmix.factored(loss, "factored")(jaxmix.attach(KERNEL, mixed))

    actual_gradients = jax.grad(factored_loss)(mixed)
    expected_gradients = jax.grad(lambda mixed: loss(jaxmix.compose(KERNEL, mixed)))(mixed)
    for actual, expected in zip(
        jax.tree.leaves(actual_gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    params16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), KERNEL)
    out = jaxmix.factored(run, "factored")(jaxmix.attach(params16, mixed), X.astype(jnp.bfloat16))
    expected = run(jaxmix.compose(KERNEL, mixed), X)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.03 * np.abs(expected).max())


def test_unsupported_products_use_the_dense_weight(made_dense: list[int]) -> None:
    """A weight in the place of the tokens, or an adapter that replaces the experts' weights."""

    def on_the_left(params: Any, w: Any) -> Any:
        return jax.lax.ragged_dot(params["proj.weight"], w, SIZES)

    proj = {"proj.weight": normal(TOKENS, IN)}
    low_rank_and_dense = jaxmix.mix(
        adapter("a", experts=expert_lora(2, True)),
        adapter("b", experts=Replace(normal(EXPERTS, IN, OUT))),
    )
    left = (
        f"proj.weight ({(TOKENS, IN)} float32): ragged_dot_general at test_ragged.py:"
        f"{on_the_left.__code__.co_firstlineno + 1} ({on_the_left.__qualname__})"
    )
    for fn, params, mixed, x, use in (
        (on_the_left, proj, adapter("a", proj=lora(IN, TOKENS)), KERNEL["experts"], left),
        (run, KERNEL, low_rank_and_dense, X, USE),
    ):
        made_dense[0] = 0
        with pytest.warns(DenseWeightWarning, match=dense_warning(use)):
            assert difference(fn, params, mixed, x, how="auto") < 2e-6
        assert made_dense == [1]
