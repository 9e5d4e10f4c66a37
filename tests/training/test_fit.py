"""Strengths learned by gradient: found where they are known, and refused in words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.pictures import grid
from jaxmix.training import by_site, draw_strengths, fit, strengths_by_site

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
        "fit got a: nothing at 0 sites, strength 1, expected at least one adapter with sites.",
    ),
    "no batch": (
        lambda: fit(lora(), PARAMS, off, [], progress=False),
        "fit got no batches, expected one for each step.",
    ),
    "no number": (
        lambda: fit(lora(), PARAMS, lambda *_: jnp.inf * off(*_), WANTED, progress=False),
        "the loss of step 1 is inf, expected a finite number. Use a smaller learning rate, "
        "and check loss_fn on the mix itself.",
    ),
}


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(call: Callable[[], Any], text: str) -> None:
    """Where, what was found, what was expected, what to do."""
    with pytest.raises(AdapterError) as caught:
        call()
    assert str(caught.value) == text


# ---------------------------------------------------------------- the picture


def test_strengths_by_site_are_read_back() -> None:
    """Adapters that were taken apart are one again; a name with the sign in it is none."""
    mixed = jaxmix.mix(*by_site(0.5 * lora()).parts, oft().renamed("odd@name"))
    assert strengths_by_site(mixed) == {
        "lora": {"one": 0.5, "two": 0.5},
        "odd@name": {"one": 1.0},
    }


def test_the_picture(tmp_path: Path) -> None:
    """A map for each adapter: rows are modules, columns are layers."""
    pytest.importorskip("matplotlib")
    sites = {"h.0.q": 0.2, "h.0.v": 1.5, "h.10.q": 0.9, "h.2.q": 1.1, "head": 0.4}
    update = lora().updates["one"]
    parts = [Adapter({site: update}, s, f"a@{site}") for site, s in sites.items()]
    mixed = jaxmix.mix(*parts, Adapter({"head": update}, name="b"))
    path = draw_strengths(mixed, tmp_path / "strengths.png")
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    rows, columns, numbers = grid(sites)
    assert (rows, columns) == (["q", "v", "head"], ["", "0", "2", "10"])
    np.testing.assert_array_equal(
        numbers,
        [[np.nan, 0.2, 1.1, 0.9], [np.nan, 1.5, np.nan, np.nan], [0.4, np.nan, np.nan, np.nan]],
    )


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    """In words."""
    with pytest.raises(AdapterError) as caught:
        draw_strengths(jaxmix.mix(), tmp_path / "x.png")
    assert str(caught.value) == (
        "draw_strengths got mix of nothing: the identity, expected an adapter with sites."
    )
