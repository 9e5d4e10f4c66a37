"""`fit` finds known strengths by gradient descent; the full text of its errors is tested."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError, DenseWeightWarning, UnsupportedError
from jaxmix.training import by_site, fit

from .samples import PARAMS, loha, lora, oft

MIXED = jaxmix.mix(lora(), oft(), loha())


def distance(params: Any, expected: Any) -> Any:
    """Returns the distance between params."""
    return sum(jnp.mean((params[name] - expected[name]) ** 2) for name in PARAMS)


def fit_towards(expected_mix: Any, per: Any, mixed: Any = MIXED, steps: int = 60) -> Any:
    """Returns a fit to params with another mix composed in."""
    batches = [jaxmix.compose(PARAMS, expected_mix)] * steps
    return fit(mixed, PARAMS, distance, batches, per=per, how="dense", progress=False)


def test_fit_finds_strengths_by_adapter() -> None:
    """`fit` finds the strengths that made the params, and leaves the adapters unchanged."""
    truth = {"lora": 0.4, "oft": 1.3, "loha": -0.2}
    expected = jaxmix.mix(MIXED.parts[0] * 0.4, MIXED.parts[1] * 1.3, MIXED.parts[2] * -0.2)
    result = fit_towards(expected, "adapter", steps=80)
    assert result.strengths == pytest.approx(truth, abs=0.03)
    assert len(result.losses) == 80 and result.losses[-1] < 0.01 * result.losses[0]
    assert result.mix.parts[0].updates["one"] is MIXED.parts[0].updates["one"]
    assert all(isinstance(part.strength, float) for part in result.mix.parts)


def test_per_mix_keeps_the_ratio_of_strengths() -> None:
    """`per="mix"` multiplies the given strengths by one factor."""
    start = jaxmix.mix(lora(), 0.5 * loha())
    result = fit_towards(0.6 * start, "mix", start)
    assert result.strengths == pytest.approx({"lora": 0.6, "loha": 0.3}, abs=0.02)


def test_fit_finds_strengths_by_site() -> None:
    """`per="site"` finds strengths that no mix of whole adapters can have."""
    split = by_site(jaxmix.mix(lora(), oft()))
    truth = {"lora@one": 0.3, "lora@two": 1.4, "oft@one": 0.8}
    expected = jaxmix.mix(*split.parts, strength=list(truth.values()))
    result = fit_towards(expected, "site", jaxmix.mix(lora(), oft()), steps=80)
    assert list(result.strengths) == list(truth)
    assert result.strengths == pytest.approx(truth, abs=0.03)
    by_adapter = fit_towards(expected, "adapter", jaxmix.mix(lora(), oft()), steps=80)
    assert result.losses[-1] < 0.05 * by_adapter.losses[-1]


def test_by_site_equals_the_mix() -> None:
    """`by_site` keeps the adapters' order and strengths."""
    mixed = jaxmix.mix(0.7 * oft(), lora(), 0.4 * loha())
    by_site_params, mixed_params = (
        jaxmix.compose(PARAMS, item) for item in (by_site(mixed), mixed)
    )
    for name in PARAMS:
        np.testing.assert_array_equal(by_site_params[name], mixed_params[name])
    assert [part.name for part in by_site(mixed).parts] == [
        "oft@one",
        "lora@one",
        "lora@two",
        "loha@two",
    ]


def test_steps_limit_an_endless_stream() -> None:
    """`steps` limits an endless stream of batches, and the given optimizer is used."""

    def endless() -> Any:
        while True:
            yield jaxmix.compose(PARAMS, 0.5 * lora())

    options: Any = {"optimizer": optax.sgd(0.0), "how": "dense", "progress": False}
    result = fit(lora(), PARAMS, distance, endless(), steps=3, **options)
    assert len(result.losses) == 3 and result.strengths == {"lora": 1.0}
    assert len(set(result.losses)) == 1


def test_progress_bar_is_optional(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress bar is shown unless `progress=False`."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    expected = [jaxmix.compose(PARAMS, lora())]
    fit(lora(), PARAMS, distance, expected, how="dense")
    assert "strengths" in capsys.readouterr().out
    fit(lora(), PARAMS, distance, expected, how="dense", progress=False)
    assert capsys.readouterr().out == ""


def test_dense_weights_are_reported_once() -> None:
    """One warning for all steps names the weights; with ``how`` there is none, or an error."""
    with pytest.warns(DenseWeightWarning) as caught:
        result = fit(lora(), PARAMS, distance, BATCHES * 3, progress=False)
    assert len(caught) == 1 and "one.weight" in str(caught[0].message)
    dense = fit(lora(), PARAMS, distance, BATCHES * 3, how="dense", progress=False)
    assert result.strengths == pytest.approx(dense.strengths, abs=1e-6)
    with pytest.raises(UnsupportedError) as refused:
        fit(lora(), PARAMS, distance, BATCHES, how="factored", progress=False)
    where = re.sub(r"test_fitting\.py:\d+", "HERE", str(refused.value))
    assert where == (
        'factored got how="factored", expected a factored form for each use of a weight; 2 weights '
        "would be made dense:\n"
        "  one.weight ((6, 8) float32): sub at HERE (distance.<locals>.<genexpr>)\n"
        "  two.weight ((4, 6) float32): sub at HERE (distance.<locals>.<genexpr>)\n"
        "Multiply tokens by the whole weight, convolve with it or look up its rows, or merge the "
        'adapters of these leaves with jaxmix.compose. With how="auto" these uses take the dense '
        "weight, with a warning."
    )


BATCHES = [PARAMS]

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "per": (
        lambda: fit(lora(), PARAMS, distance, BATCHES, per="layer"),  # pyright: ignore
        "fit got per='layer', expected 'mix', 'adapter' or 'site'.",
    ),
    "nothing": (
        lambda: fit(Adapter({}, name="a"), PARAMS, distance, BATCHES),
        "fit got a: nothing at 0 sites, strength 1, expected at least one adapter with sites.",
    ),
    "how": (
        lambda: fit(lora(), PARAMS, distance, BATCHES, how="fast"),  # pyright: ignore
        "factored: how is 'fast', expected one of 'auto', 'factored', 'dense'.",
    ),
    "no batch": (
        lambda: fit(lora(), PARAMS, distance, [], progress=False),
        "fit got no batches, expected one for each step.",
    ),
    "no number": (
        lambda: fit(
            lora(), PARAMS, lambda *_: jnp.inf * distance(*_), BATCHES, how="dense", progress=False
        ),
        "the loss of step 1 is inf, expected a finite number. Use a smaller learning rate, "
        "and check loss_fn on the mix itself.",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_fit_errors(call: Callable[[], Any], message: str) -> None:
    """The error states the wrong value, the expected one and the remedy."""
    with pytest.raises(AdapterError) as caught:
        call()
    assert str(caught.value) == message
