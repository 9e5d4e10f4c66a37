"""The demo on its own assets: PEFT's losses, what each adapter improves, picture and exit code."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from jaxmix.demo import measure, run
from jaxmix.errors import CheckpointError

from .messages import full_text

DEMO = measure.read_demo()
OWN = {name: about["trained_on"] for name, about in DEMO.recorded["adapters"].items()}


def test_each_adapter_helps_in_its_own_domain() -> None:
    """PEFT's figures show it; LoRA and LoHa together help in both domains."""
    base = DEMO.peft(())
    for name, domain in OWN.items():
        assert DEMO.peft((name,))[domain] < base[domain] - 0.3
    together = DEMO.peft(("lora", "loha"))
    for name in ("lora", "loha"):
        assert together[OWN[name]] < base[OWN[name]] - 0.2


def test_order_matters_with_oft() -> None:
    """PEFT's figures depend on the order, so a swapped order would show."""
    for kind in ("lora", "loha"):
        forward, backward = DEMO.peft((kind, "oft")), DEMO.peft(("oft", kind))
        assert min(abs(forward[domain] - backward[domain]) for domain in forward) > 5e-3


# Programs are not optimized in tests, so a model's loss takes three seconds a domain.
FEW = (("oft", "lora", "loha"),)


def of_domains(demo: measure.Demo, *domains: str) -> measure.Demo:
    """Returns the demo with only these domains."""
    losses = [
        {**row, "peft_forward": {domain: row["peft_forward"][domain] for domain in domains}}
        for row in demo.recorded["losses"]
    ]
    windows = {domain: demo.windows[domain] for domain in domains}
    return replace(demo, windows=windows, recorded={**demo.recorded, "losses": losses})


ALL = pytest.param(measure.ORDERS, marks=pytest.mark.thorough, id="all")


@pytest.mark.parametrize("orders", [pytest.param(FEW, id="few"), ALL])
def test_demo_runs(
    orders: tuple[tuple[str, ...], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every loss equals PEFT's, every model is in the table, and the picture is written."""
    assert set(orders) <= set(measure.ORDERS)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(measure, "ORDERS", orders)
    monkeypatch.setattr(run, "ORDERS", orders)
    if orders == FEW:
        monkeypatch.setattr(run, "read_demo", lambda: of_domains(DEMO, "devil"))
        monkeypatch.setattr(run, "PASSAGES", run.PASSAGES[-1:])
        monkeypatch.setattr(run, "times", partial(measure.times, repeats=1, length=8))
    assert run.main(tmp_path / "table.png") == 0
    output = capsys.readouterr().out
    for order in orders:
        assert (" → ".join(order) or "base") in output
    assert "0.5 · (lora → loha → oft)" in output
    assert "Largest difference from PEFT's forward" in output
    assert "compose of lora, loha, oft" in output and "a token" in output
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["table.png"]


def test_loss_that_differs_from_pefts_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With other recorded losses the exit code is 1."""
    orders = ((),)
    losses = {"bible": DEMO.peft(())["bible"] + 0.01}
    recorded = {**DEMO.recorded, "losses": [{"order": [], "peft_forward": losses}]}
    short = {"bible": DEMO.windows["bible"][:8]}
    demo = replace(DEMO, recorded=recorded, windows=short)
    monkeypatch.setattr(run, "read_demo", lambda: demo)
    monkeypatch.setattr(measure, "ORDERS", orders)
    monkeypatch.setattr(measure, "WEAKER", ((), 0.5))
    monkeypatch.setattr(run, "PASSAGES", (((), "jargon"),))
    monkeypatch.setattr(run, "passage", lambda *_: "[techspeak] a tag that was not opened: [/bold]")
    monkeypatch.setattr(run, "times", lambda demo: measure.Times(1.0, 1.0, 1.0))
    assert run.main(tmp_path / "table.png") == 1
    output = capsys.readouterr().out
    assert "larger than rounding" in output
    # Drawn text is text, whatever brackets are in it.
    assert "[techspeak] a tag that was not opened: [/bold]" in output.replace("\n", " ")


def test_missing_assets(tmp_path: Path) -> None:
    """The error names the missing assets and the remedy."""
    file = tmp_path / "recorded.json"
    message = full_text(
        f"{file} can't be read: [Errno 2] No such file or directory: {str(file)!r}. Expected the "
        "demo's assets. Reinstall jaxmix, or create them with python -m demo.make_assets."
    )
    with pytest.raises(CheckpointError, match=message):
        measure.read_demo(tmp_path)


def test_assets_are_small() -> None:
    """The assets take at most 8 MB, and the sources of the texts are stated."""
    files = [path for path in measure.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert "public domain" in (measure.ASSETS / "README.md").read_text(encoding="utf-8")
