"""Decompositions of the base's weight: on an accelerator, its host computes them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.affine import Base
from jaxmix.apply import decomposing, plan
from jaxmix.apply.decomposing import decomposed
from jaxmix.families import Rebase, Together

from ..laws.chains import ALL
from ..laws.draws import Module
from ..messages import full_text

MODULE = Module("linear", (8, 16), True)
KINDS = ("KaSA", "FRoD")


def update_of(kind: str) -> Any:
    """Returns an update in float32."""
    update = ALL[kind](np.random.default_rng(1), MODULE)
    return jax.tree.map(
        lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x, update
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_together", [False, True])
def test_host_decomposition_gives_the_same_map(kind: str, is_together: bool) -> None:
    """NumPy's decomposition gives the map that the program's own gives."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), np.float32)
    update = Together((update_of(kind),)) if is_together else update_of(kind)
    on_host = update.decomposed(np.asarray(w))
    assert update.decomposes and not on_host.decomposes
    expected, output = (
        variant.weight_map(Base(w, w.shape), jnp.float32(0.7))(w) for variant in (update, on_host)
    )
    np.testing.assert_allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_accelerator_program_has_no_decomposition(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eager `compose` passes the decomposition to the program, which calls no LAPACK."""
    programs: list[str] = []
    real = plan._fused

    def spied(*args: Any) -> Any:
        lowered = real.lower(*args)
        programs.append(lowered.as_text())
        return lowered.compile()(*[x for i, x in enumerate(args) if i not in (3, 4)])

    w = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    adapter = Adapter({"a": update_of(kind)}, 0.7)
    expected = jaxmix.compose({"a.weight": w}, adapter)["a.weight"]
    monkeypatch.setattr(plan, "_runs_by_pass", lambda leaf: False)
    monkeypatch.setattr(plan, "_fused", spied)
    jaxmix.compose({"a.weight": w}, adapter)
    monkeypatch.setattr(decomposing, "is_on_cpu", lambda leaf: False)
    composed = jaxmix.compose({"a.weight": w}, adapter)["a.weight"]
    np.testing.assert_allclose(composed, expected, atol=1e-4)
    before, after = programs
    assert "lapack" in before and "lapack" not in after


def test_chains_that_the_program_decomposes_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, in a trace, without a weight, and where an update changes what KaSA reads."""
    w = jnp.ones((8, 16))
    kasa, rebase = (1.0, update_of("KaSA")), (1.0, Rebase(np.ones((8, 16), np.float32)))

    def never() -> jax.Array:
        raise AssertionError("the weight was read")

    def check(weight: Any, *chain: Any) -> None:
        assert decomposed(chain, weight, never) is chain

    check(w, kasa)
    monkeypatch.setattr(decomposing, "is_on_cpu", lambda leaf: False)
    check(w, rebase, kasa)
    check(w, (1.0, Together(())))
    check(None, kasa)
    jax.eval_shape(lambda weight: check(weight, kasa), w)
    jax.eval_shape(lambda strength: check(w, (strength, kasa[1])), 1.0)
    with pytest.raises(AssertionError, match=full_text("the weight was read")):
        check(w, kasa)
