"""Strengths learned by gradient: found where they are known, and refused in words."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.training import by_site, fit

from .made import PARAMS, loha, lora, oft

MIXED = jaxmix.mix(lora(), oft(), loha())


def off(params: Any, wanted: Any) -> Any:
    """How far params are from others."""
    return sum(jnp.mean((params[name] - wanted[name]) ** 2) for name in PARAMS)


def found(wanted: Any, per: Any, mixed: Any = MIXED, steps: int = 60) -> Any:
    """A fit to the params with another mix in them."""
    batches = [jaxmix.compose(PARAMS, wanted)] * steps
    return fit(mixed, PARAMS, off, batches, per=per, progress=False)


def test_strengths_by_adapter_are_found() -> None:
    """Those of the mix with which the params were made; the adapters stay as they were."""
    truth = {"lora": 0.4, "oft": 1.3, "loha": -0.2}
    wanted = jaxmix.mix(MIXED.parts[0] * 0.4, MIXED.parts[1] * 1.3, MIXED.parts[2] * -0.2)
    result = found(wanted, "adapter", steps=80)
    assert result.strengths == pytest.approx(truth, abs=0.03)
    assert len(result.losses) == 80 and result.losses[-1] < 0.01 * result.losses[0]
    assert result.mix.parts[0].updates["one"] is MIXED.parts[0].updates["one"]
    assert all(isinstance(part.strength, float) for part in result.mix.parts)


def test_one_factor_for_all() -> None:
    """It begins from the strengths that are there, and keeps how they stand to one another."""
    start = jaxmix.mix(lora(), 0.5 * loha())
    result = found(0.6 * start, "mix", start)
    assert result.strengths == pytest.approx({"lora": 0.6, "loha": 0.3}, abs=0.02)


def test_strengths_by_site() -> None:
    """One for each adapter and site: another mix could not have them."""
    sites = by_site(jaxmix.mix(lora(), oft()))
    truth = {"lora@one": 0.3, "lora@two": 1.4, "oft@one": 0.8}
    wanted = jaxmix.mix(*sites.parts, strength=list(truth.values()))
    result = found(wanted, "site", jaxmix.mix(lora(), oft()), steps=80)
    assert list(result.strengths) == list(truth)
    assert result.strengths == pytest.approx(truth, abs=0.03)
    by_adapter = found(wanted, "adapter", jaxmix.mix(lora(), oft()), steps=80)
    assert result.losses[-1] < 0.05 * by_adapter.losses[-1]


def test_by_site_is_the_same_mix() -> None:
    """In the adapters' order, at their strengths."""
    mixed = jaxmix.mix(0.7 * oft(), lora(), 0.4 * loha())
    ours, theirs = (jaxmix.compose(PARAMS, one) for one in (by_site(mixed), mixed))
    for name in PARAMS:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert [part.name for part in by_site(mixed).parts] == [
        "oft@one",
        "lora@one",
        "lora@two",
        "loha@two",
    ]


def test_steps_an_optimizer_and_a_stream() -> None:
    """At most so many steps of batches without end, by an optimizer of one's own."""

    def endless() -> Any:
        while True:
            yield jaxmix.compose(PARAMS, 0.5 * lora())

    result = fit(lora(), PARAMS, off, endless(), optimizer=optax.sgd(0.0), steps=3, progress=False)
    assert len(result.losses) == 3 and result.strengths == {"lora": 1.0}
    assert len(set(result.losses)) == 1


def test_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown by default, and can be left out."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    wanted = [jaxmix.compose(PARAMS, lora())]
    fit(lora(), PARAMS, off, wanted)
    assert "strengths" in capsys.readouterr().out
    fit(lora(), PARAMS, off, wanted, progress=False)
    assert capsys.readouterr().out == ""


WANTED = [PARAMS]

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "per": (
        lambda: fit(lora(), PARAMS, off, WANTED, per="layer"),  # pyright: ignore
        "fit got per='layer', expected 'mix', 'adapter' or 'site'.",
    ),
    "nothing": (
        lambda: fit(Adapter({}, name="a"), PARAMS, off, WANTED),
        "fit got a: nothing at 0 sites, strength 1, expected adapters whose strengths can be "
        "learned.",
    ),
    "no batch": (
        lambda: fit(lora(), PARAMS, off, [], progress=False),
        "fit got no batches, expected one for each step.",
    ),
    "no number": (
        lambda: fit(lora(), PARAMS, lambda *_: jnp.inf * off(*_), WANTED, progress=False),
        "the loss of step 1 is inf, expected a finite number. Give an optimizer with a smaller "
        "rate, and look at loss_fn of the mix itself.",
    ),
}


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(call: Callable[[], Any], text: str) -> None:
    """Where, what was found, what was expected, what to do."""
    with pytest.raises(AdapterError) as caught:
        call()
    assert str(caught.value) == text
