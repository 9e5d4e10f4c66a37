"""`attach` computes norms and rotations once, and later calls use the held values."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.families import BOFT, OFT, DiagOFT, LoKr, LoRA, Normed, Rebase
from jaxmix.families.boft import butterfly
from jaxmix.operators.backends import TPU
from jaxmix.unmerged.held import HeldValue, _checksum, _checksum_of_first

OUT, IN = 24, 20


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def update(kind: str, seed: int = 0) -> Any:
    match kind:
        case "lora":
            return LoRA(normal(2, IN, seed=seed), normal(OUT, 2), 0.5)
        case "dora":
            return LoRA(normal(2, IN, seed=seed), normal(OUT, 2), 0.5, 1 + normal(OUT) ** 2)
        case "normed":
            lokr = LoKr((normal(4, 5),), (normal(6, 4, seed=seed),), 0.5)
            return Normed(lokr, 1 + normal(IN) ** 2, axis="in")
        case "oft":
            return OFT(0.3 * normal(5, 6, seed=seed))
        case "oft series":
            return OFT(0.3 * normal(5, 6, seed=seed), terms=5)
        case "oft shared":
            return OFT(0.3 * normal(1, 6, seed=seed), eps=0.1)
        case "boft":
            generator = 0.3 * normal(2, 4, 6, 6, seed=seed)
            return BOFT(generator, normal(OUT), butterfly(2, 4, 6), on_output=True)
        case _:
            return DiagOFT(0.3 * normal(5, 4, 4, seed=seed), normal(OUT), side="in")


NORMS = ("dora", "normed")
ROTATIONS = ("oft", "oft series", "oft shared", "boft", "diag oft")
PARAMS = {"a.weight": jnp.asarray(normal(OUT, IN))}
X = jnp.asarray(normal(3, IN))


def mixed(*kinds: str, seed: int = 0) -> Mix:
    return jaxmix.mix(*(Adapter({"a": update(kind, seed)}, 0.7, kind) for kind in kinds))


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T)


def held(leaves: Any) -> Any:
    return leaves["a.weight"].held


def without_held(leaves: Any) -> Any:
    return leaves | {"a.weight": replace(leaves["a.weight"], held=())}


def with_changed_arrays(leaves: Any, change: Any) -> Any:
    """Changes the arrays of the tree by their paths, except those that are held."""

    def apply(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        return x if ".held" in name else change(name, x)

    return jax.tree_util.tree_map_with_path(apply, leaves)


def check_matches_composed(leaves: Any, *, atol: float = 2e-5) -> None:
    """Asserts that the leaves give the same outputs as the composed params."""
    base, adapters = jaxmix.detach(leaves)
    x = X.astype(base["a.weight"].dtype)
    expected = run(jaxmix.compose(base, adapters), x)
    actual = jaxmix.factored(run)(leaves, x)
    np.testing.assert_allclose(
        actual.astype(jnp.float32), np.asarray(expected).astype(np.float32), atol=atol
    )


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("kind", [*NORMS, *ROTATIONS])
def test_values_are_computed_when_adapters_are_attached(kind: str) -> None:
    leaves = jaxmix.attach(PARAMS, mixed("lora", kind))
    before, after = held(leaves)[0]
    assert before is None
    check_matches_composed(leaves)
    # A wrong value gives a wrong result, so the held value is used.
    wrong = replace(leaves["a.weight"], held=((before, HeldValue(2 * after.value, after.mark)),))
    difference = jaxmix.factored(run)(leaves | {"a.weight": wrong}, X) - jaxmix.factored(run)(
        leaves, X
    )
    assert float(jnp.abs(difference).max()) > 1e-2


@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", ["dora", "oft", "oft series"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_those_of_values_computed_in_each_call(kind: str, dtype: str) -> None:
    """Gradients by the base, the factors and the strengths match."""
    with jax.enable_x64(dtype == "float64"):
        wide = jax.tree.map(lambda x: jnp.asarray(x, dtype), (PARAMS, mixed(kind), X))
        params, adapters, x = wide
        leaves = jaxmix.attach(params, adapters)
        assert held(leaves)

        @jax.jit
        def gradient(leaves: Any) -> Any:
            return jax.grad(lambda leaves: (jaxmix.factored(run)(leaves, x) ** 2).sum())(leaves)

        gradient_of_held, gradient_of_computed = gradient(leaves), gradient(without_held(leaves))
        atol = 1e-5 if dtype == "float32" else 1e-13
        for actual, expected in zip(
            jax.tree.leaves(without_held(gradient_of_held)),
            jax.tree.leaves(gradient_of_computed),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, atol=atol, rtol=atol)
        assert not any(np.any(x) for x in jax.tree.leaves(held(gradient_of_held)))


def is_factor(name: str, x: Any) -> bool:
    return ".base" not in name and np.ndim(x) >= 2 and np.asarray(x).dtype.kind == "f"


CHANGES = {
    "factors": lambda name, x: x + 0.5 if is_factor(name, x) else x,
    "negated": lambda name, x: -x if is_factor(name, x) else x,
    "reordered": lambda name, x: x[..., ::-1] if is_factor(name, x) else x,
    "strength": lambda name, x: 0.3 * x if np.ndim(x) == 0 else x,
    "base": lambda name, x: x + 0.5 if ".base" in name else x,
    "one row": lambda name, x: x.at[3].add(0.5) if ".base" in name else x,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["dora", "oft series", "boft"])
def test_changed_arrays_get_their_own_values(kind: str, change: str) -> None:
    """An optimizer step on the attached tree changes arrays in this way."""
    new = with_changed_arrays(jaxmix.attach(PARAMS, mixed(kind)), CHANGES[change])
    assert held(new)
    check_matches_composed(new)


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_cast_trees_get_their_own_values(kind: str) -> None:
    """A cast rounds the held values, so they are not used, even if it changes no factor."""
    exact = jax.tree.map(
        lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), mixed(kind)
    )
    leaves = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), jaxmix.attach(PARAMS, exact))
    assert held(leaves)
    check_matches_composed(leaves, atol=3e-2)
    x = X.astype(jnp.bfloat16)
    fresh = jaxmix.factored(run)(without_held(leaves), x)
    np.testing.assert_array_equal(jaxmix.factored(run)(leaves, x), fresh)


def test_traced_adapters_and_other_leaves_hold_nothing() -> None:
    for kind in ("dora", "oft"):
        assert held(jax.jit(lambda adapters: jaxmix.attach(PARAMS, adapters))(mixed(kind))) == ()
        assert held(jaxmix.attach(PARAMS, mixed(kind), ready=True)) == ()
    assert held(jaxmix.attach(PARAMS, mixed("lora"))) == ()


def test_norms_after_a_change_of_the_base_are_not_held() -> None:
    """Such norms depend on the strength of that change; rotations do not."""
    first = Rebase(normal(OUT, IN))
    updates = {"first": first, "dora": update("dora"), "oft": update("oft")}
    parts = [Adapter({"a": update}, 0.7, name) for name, update in updates.items()]
    leaves = jaxmix.attach(PARAMS, parts)
    assert [value is None for value in held(leaves)[0]] == [True, True, False]
    check_matches_composed(leaves)


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_constants_within_jit_have_their_values_computed_once(kind: str) -> None:
    """They are computed while the function is traced; values of arguments, at each call."""
    adapters, values = mixed(kind), []

    @jax.jit
    def step(x: Any) -> Any:
        leaves = jaxmix.attach(PARAMS, adapters)
        values.append(held(leaves)[0][0].value)
        return jaxmix.factored(run)(leaves, x)

    np.testing.assert_allclose(step(X), run(jaxmix.compose(PARAMS, adapters), X), atol=2e-5)
    assert not isinstance(values[0], jax.core.Tracer)


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_new_strengths_and_adapters_do_not_retrace(kind: str) -> None:
    count = [0]

    def counted(params: Any, x: Any) -> Any:
        count[0] += 1
        return run(params, x)

    step = jax.jit(jaxmix.factored(counted))
    for adapters in (mixed(kind) * 0.2, mixed(kind) * 0.9, mixed(kind, seed=1)):
        actual = step(jaxmix.attach(PARAMS, adapters), X)
        np.testing.assert_allclose(actual, run(jaxmix.compose(PARAMS, adapters), X), atol=2e-5)
    assert count[0] == 1


def test_strengths_vary_under_vmap_and_scan() -> None:
    """One of the strengths is that of the held value."""
    leaves = jaxmix.attach(PARAMS, mixed("oft"))
    strengths = jnp.array([0.7, 0.2])

    def with_strength(strength: Any) -> Any:
        return with_changed_arrays(leaves, lambda name, x: strength if np.ndim(x) == 0 else x)

    def run_with_strength(strength: Any) -> Any:
        return jaxmix.factored(run)(with_strength(strength), X)

    expected = [run(jaxmix.compose(PARAMS, mixed("oft") * (s / 0.7)), X) for s in (0.7, 0.2)]
    actual = jax.jit(jax.vmap(run_with_strength))(strengths)
    np.testing.assert_allclose(actual, jnp.stack(expected), atol=2e-5)
    _, actual = jax.jit(lambda s: jax.lax.scan(lambda _, s: (None, run_with_strength(s)), None, s))(
        strengths
    )
    np.testing.assert_allclose(actual, jnp.stack(expected), atol=2e-5)


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_layers_of_a_stack_hold_their_own_values(kind: str) -> None:
    """A changed weight of one layer does not affect the values of another."""
    rules = tuple(jaxmix.Rule(f"a{i}", "stack", None, f"{i}") for i in range(2))
    layout, params = jaxmix.Layout("stack", rules), {"stack": jnp.asarray(normal(2, OUT, IN))}
    adapter = Adapter({f"a{i}": update(kind, i) for i in range(2)}, 0.7)
    leaves = jaxmix.attach(params, adapter, layout=layout)
    assert all(values[0] for values in leaves["stack"].held)

    def product(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda _, w: (None, x @ w.T), None, params["stack"])[1]

    for scale in (1.0, 2.0):
        changed_stack = replace(leaves["stack"], base=leaves["stack"].base.at[1].multiply(scale))
        base, adapters = jaxmix.detach({"stack": changed_stack})
        expected = product(jaxmix.compose(base, adapters, layout=layout), X)
        actual = jaxmix.factored(product)({"stack": changed_stack}, X)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 24), (300, 7), (3, 200, 5), (9,)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_tiles_have_the_checksum_of_a_row_or_column(
    shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree that is attached on a CPU keeps its values on a TPU."""
    x = jnp.asarray(normal(*shape), dtype)
    expected = [_checksum_of_first(x, axis, 3) for axis in (0, x.ndim - 1)]
    assert expected[1] == _checksum(x[..., 0], 3)

    def on_tpu(cpu: Any, accelerator: Any, x: Any) -> Any:
        return accelerator(TPU, x)

    monkeypatch.setattr("jaxmix.unmerged.held.by_platform", on_tpu)
    assert expected == [_checksum_of_first(x, axis, 3) for axis in (0, x.ndim - 1)]
