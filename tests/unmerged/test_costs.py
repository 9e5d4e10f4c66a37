"""The choice between forms by backend, and the norms that `attach` holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.families import LoHa, LoKr, LoRA, Normed
from jaxmix.operators.backends import GPU, TPU, Backend
from jaxmix.unmerged import costs, norms
from jaxmix.unmerged.attaching import is_factored

OUT, IN = 24, 20


def normal(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def update(kind: str, out: int = OUT, into: int = IN) -> Any:
    match kind:
        case "lora":
            return LoRA(normal(2, into), normal(out, 2), 0.5)
        case "wide lora":
            return LoRA(normal(64, into), normal(out, 64), 0.5)
        case "dora":
            return LoRA(normal(2, into), normal(out, 2), 0.5, 1 + normal(out) ** 2)
        case "normed":
            return Normed(update("lokr"), 1 + normal(into) ** 2, axis="in")
        case "loha":
            pair = normal(out, 2, seed=1), normal(2, into, seed=1)
            return LoHa(*pair, *pair, 0.5)  # pyright: ignore[reportCallIssue]
        case _:
            return LoKr((normal(4, 5),), (normal(out // 4, into // 5),), 0.5)


PARAMS = {"a.weight": normal(OUT, IN)}


def mixed(*kinds: str) -> Mix:
    return jaxmix.mix(*(Adapter({"a": update(kind)}, 0.7, kind) for kind in kinds))


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T)


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize("kinds", [("wide lora", "loha", "lokr"), ("lokr", "dora"), ("lokr",)])
def test_all_choices_give_the_composed_weights(
    kinds: tuple[str, ...], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(tokens, IN)
    want = run(jaxmix.compose(PARAMS, mixed(*kinds)), x)
    leaves = jaxmix.attach(PARAMS, mixed(*kinds))
    for how in ("auto", "factored", "dense"):
        np.testing.assert_allclose(jaxmix.factored(run, how)(leaves, x), want, atol=2e-5)
    monkeypatch.setattr(costs, "on_platform", lambda x, cpu, on, *args: on(TPU, *args))
    np.testing.assert_allclose(jaxmix.factored(run)(leaves, x), want, atol=2e-5)


def chosen(
    kinds: tuple[str, ...], tokens: int, monkeypatch: pytest.MonkeyPatch, backend: Backend = TPU
) -> list[str]:
    """The forms chosen for a CPU and for another backend, at 4096 × 4000."""
    found: list[str] = []

    def both(x: Any, cpu: Any, on: Any, *args: Any) -> Any:
        found.extend([cpu.__name__, costs.cheapest(on.args[0], costs.of_backend(backend)).__name__])
        return cpu(*args)

    monkeypatch.setattr(costs, "on_platform", both)
    shape = (4096, 4000)
    adapters = [
        Adapter({"a": jax.eval_shape(lambda k=k: update(k, *shape))}, 1.0, k) for k in kinds
    ]
    params = {"a.weight": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    x = jax.ShapeDtypeStruct((tokens, shape[1]), jnp.bfloat16)
    jax.eval_shape(
        lambda p, a, x: jaxmix.factored(run)(jaxmix.attach(p, a), x), params, adapters, x
    )
    return found


def test_accelerators_take_thin_operators_where_a_cpu_takes_the_dense_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass over a weight costs an accelerator as much as some thousand operations a number."""
    assert chosen(("loha",), 8192, monkeypatch) == ["by_dense", "by_operators"]
    assert chosen(("lora",), 128, monkeypatch) == []  # the same on both
    assert chosen(("wide lora", "lokr"), 2048, monkeypatch, GPU)[1] == "by_parts"
    assert chosen(("wide lora", "lokr"), 2048, monkeypatch)[1] == "by_view"
    assert chosen(("wide lora", "lokr"), 8, monkeypatch) == []


# ---------------------------------------------------------------- norms


def held(leaves: Any) -> Any:
    return leaves["a.weight"].norms


@pytest.mark.parametrize("kind", ["dora", "normed"])
def test_norms_are_computed_when_adapters_are_attached(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are computed once, and read at each call for any strength."""
    x = normal(3, IN)
    leaves = jaxmix.attach(PARAMS, mixed("lora", kind))
    before, after = held(leaves)[0]
    assert before is None
    np.testing.assert_allclose(
        run(jaxmix.compose(PARAMS, mixed("lora", kind)), x),
        jax.jit(jaxmix.factored(run))(leaves, x),
        atol=2e-5,
    )
    # If they are wrong, so is the result: they are used.
    double = norms.HeldNorms(2 * after.norms, after.mark)
    wrong = jax.tree.map(
        lambda leaf: leaf, leaves | {"a.weight": _with(leaves["a.weight"], (before, double))}
    )
    other = jaxmix.factored(run)(wrong, x)
    assert float(jnp.abs(other - jaxmix.factored(run)(leaves, x)).max()) > 1e-2


def _with(leaf: Any, found: Any) -> Any:
    return jaxmix.unmerged.leaf.replace(leaf, norms=(found,))


@pytest.mark.parametrize("part", ["factors", "base", "one row", "all, cast"])
def test_changed_arrays_get_their_own_norms(part: str) -> None:
    """A step of an optimizer on the attached tree, or a cast of it."""
    x = normal(3, IN)
    leaves = jaxmix.attach(PARAMS, mixed("dora"))

    def change(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "norms" in name:
            return leaf.astype(jnp.bfloat16) if part == "all, cast" else leaf
        if part == "all, cast":
            return jnp.asarray(leaf, jnp.bfloat16)
        is_mine = ("base" in name) == (part != "factors") and jnp.ndim(leaf) == 2
        if is_mine and part == "one row":
            return jnp.asarray(leaf).at[3].add(0.5)
        return leaf + 0.5 if is_mine else leaf

    new = jax.tree_util.tree_map_with_path(change, leaves)
    assert held(new) and is_factored(new["a.weight"])
    base, adapters = jaxmix.detach(new)
    want = run(jaxmix.compose(base, adapters), x.astype(base["a.weight"].dtype))
    got = jaxmix.factored(run)(new, x.astype(base["a.weight"].dtype))
    np.testing.assert_allclose(
        got.astype(jnp.float32),
        want.astype(jnp.float32),
        atol=3e-2 if part == "all, cast" else 2e-5,
    )


def test_traced_adapters_and_other_leaves_hold_no_norms() -> None:
    traced = jax.eval_shape(lambda: jaxmix.attach(PARAMS, mixed("dora")))
    assert held(traced) == ()
    assert held(jaxmix.attach(PARAMS, mixed("lora"))) == ()
    assert held(jaxmix.attach(PARAMS, mixed("dora"), ready=True)) == ()


def test_known_arrays_within_jit_have_their_norms_computed_once() -> None:
    """While the function is traced; those of its arguments are computed at each call."""
    x, mix, found = normal(3, IN), mixed("dora"), []

    @jax.jit
    def step(x: Any) -> Any:
        leaves = jaxmix.attach(PARAMS, mix)
        found.append(held(leaves)[0][0].norms)
        return jaxmix.factored(run)(leaves, x)

    np.testing.assert_allclose(step(x), run(jaxmix.compose(PARAMS, mix), x), atol=2e-5)
    assert not isinstance(found[0], jax.core.Tracer)


def test_norms_held_trace_nothing_again() -> None:
    count = [0]

    def counted(params: Any, x: Any) -> Any:
        count[0] += 1
        return run(params, x)

    step = jax.jit(jaxmix.factored(counted))
    x = normal(3, IN)
    for strength in (0.2, 0.9):
        mix = mixed("dora") * strength
        got = step(jaxmix.attach(PARAMS, mix), x)
        np.testing.assert_allclose(got, run(jaxmix.compose(PARAMS, mix), x), atol=2e-5)
    assert count[0] == 1
