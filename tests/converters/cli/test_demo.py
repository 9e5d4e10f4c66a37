"""``jaxmix demo`` runs the demo and copies its files."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from jaxmix.demo import ASSETS, measure, run

from ..bases import contents
from .running import Captured, main, run_json
from .running import run as program


@pytest.mark.parametrize("code", [0, 3])
def test_demo_passes_options_and_exit_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command passes the picture's path and `--json`, and returns the demo's exit code."""
    calls: list[tuple[Path | None, bool]] = []

    def pretend(out: Path | None = None, *, as_json: bool = False) -> int:
        calls.append((out, as_json))
        return code

    monkeypatch.setattr(run, "main", pretend)
    assert [main("demo"), main("demo", "--out", "here.png", "--json")] == [code, code]
    assert calls == [(None, False), (Path("here.png"), True)]


def test_copy_writes_model_adapters_and_texts(tmp_path: Path, capsys: Captured) -> None:
    """`--copy` writes the model, the adapters and the texts unchanged, and overwrites nothing."""
    done = program("demo", "--copy", tmp_path / "try")
    assert (done.returncode, done.stderr) == (0, "")
    place = tmp_path / "try"
    base, lora, oft = (shlex.quote(str(place / name)) for name in ("base", "lora", "oft"))
    assert done.stdout == (
        f"{place}: base, lora, loha, oft, text\n"
        f"Try: jaxmix inspect {lora} {oft} --base {base} --measure\n"
    )
    expected = {k: v for k, v in contents(ASSETS).items() if "/" in k and "__pycache__" not in k}
    assert contents(tmp_path / "try") == expected
    assert (
        "exists. Choose another folder"
        in run_json(capsys, "demo", "--copy", tmp_path / "try", code=1)["error"]
    )
    document = run_json(capsys, "demo", "--copy", tmp_path / "again")
    assert document["out"] == str(tmp_path / "again") and "lora" in document["folders"]
    document = run_json(capsys, "demo", "--copy", tmp_path / "x", "--out", "x.png", code=2)
    assert (
        "--copy does not run the demo, so there is no picture to write to --out."
        in document["error"]
    )


def test_json_goes_to_stdout_and_notes_to_stderr(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` prints one document to stdout; messages for people go to stderr."""
    row = measure.Row(("lora",), 1.0, {"bible": 1.25}, {"bible": 1.0})
    monkeypatch.setattr(run, "rows", lambda demo, step: iter([row]))
    monkeypatch.setattr(run, "PASSAGES", ())
    monkeypatch.setattr(run, "times", lambda demo: measure.Times(3.0, 2.0, 1.0))
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert main("demo", "--out", tmp_path / "x.png", "--json") == 1
    captured: Any = capsys.readouterr()
    assert "No plot: it requires matplotlib" in captured.err
    assert json.loads(captured.out) == {
        "losses": [
            {
                "order": ["lora"],
                "strength": 1.0,
                "losses": {"bible": 1.25},
                "peft": {"bible": 1.0},
                "difference": 0.25,
            }
        ],
        "seconds": {"compose_first": 3.0, "compose": 2.0, "token": 1.0},
        "picture": None,
        "largest_difference": 0.25,
    }
