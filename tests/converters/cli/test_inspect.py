"""``jaxmix inspect`` prints what adapters contain and what they change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.families import LoRA
from jaxmix.measures import measure

from ..bases import Adapters, load, save_adapter
from .running import Captured, main, run, run_json

DOWN, Q = "model.layers.*.down_proj", "model.layers.*.q_proj"


def test_script_prints_a_line_per_kind(adapters: Adapters) -> None:
    """The installed script prints one line for each kind of update."""
    done = run("inspect", f"{adapters['oft']}:-0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()[:3]] == [
        ["adapter", "kind", "size", "scale", "sites", "parameters"],
        ["oft", "×", "-0.5", "OFT", "block", "5", "2", "40", "float32"],
        [DOWN],
    ]


def test_relative_source_is_printed(
    adapters: Adapters, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is printed below the name; an absolute path is not."""
    monkeypatch.chdir(adapters["loha"].parents[1])
    assert main("inspect", "adapters/loha", adapters["lora"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == "adapters/loha" and len(lines) == 6


def test_table_has_a_line_per_adapter_and_kind(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """The table has a line per adapter and kind of update; rich's markup in names is plain text."""
    config = json.loads((adapters["lora"] / "adapter_config.json").read_text())
    factors = {
        key.removeprefix("base_model.model."): a for key, a in load(adapters["lora"]).items()
    }
    factors["model.norm.weight"] = np.ones(6, np.float32)
    saved = save_adapter(tmp_path / "s[red]", {**config, "modules_to_save": ["norm"]}, factors)
    assert main("inspect", saved, f"{adapters['oft']}:-0.5") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["adapter", "kind", "size", "scale", "sites", "parameters"],
        ["s[red]", "×", "1", "LoRA", "rank", "2", "2", "2", "72", "float32"],
        [Q],
        ["Replace", "weight", "1", "6", "float32"],
        ["model.norm"],
        ["oft", "×", "-0.5", "OFT", "block", "5", "2", "40", "float32"],
        [DOWN],
        ["OFT", "block", "3", "2", "12", "float32"],
        [Q],
    ]


def test_modules_and_scales_are_grouped(tmp_path: Path, capsys: Captured) -> None:
    """Modules of one parent share a line; different scales are printed as a range."""
    lora = LoRA(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32), 0.5)
    other = LoRA(lora.a, lora.b, 2.0)
    updates = {"h.0.mlp.up": lora, "h.1.mlp.up": other, "h.0.mlp.down": lora, "head": lora}
    saved = jaxmix.save(jaxmix.Adapter(updates, name="x"), tmp_path / "x")
    assert main("inspect", saved) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    start = ["x", "×", "1", "LoRA", "rank", "1", "0.5–2", "4", "20", "float32"]
    assert rows == [start, ["h.*.mlp:", "up,", "down"], ["head"]]


def test_json_lists_every_site(adapters: Adapters, capsys: Captured) -> None:
    """The JSON document has the table's contents and every site."""
    sites = [f"model.layers.{i}.q_proj" for i in range(2)]
    kind: dict[str, Any] = {"kind": "LoHa", "size": "rank 2", "dtype": "float32", "scale": [1.5]}
    record = {"path": str(adapters["loha"]), "name": "loha", "strength": 2.0, "source": "loha"}
    assert run_json(capsys, "inspect", f"{adapters['loha']}:2") == {
        "adapters": [{**record, "kinds": [{**kind, "numbers": 112, "sites": sites}]}]
    }


def test_missing_adapter_is_reported(capsys: Captured) -> None:
    """The library's error is printed as text and as JSON."""
    assert main("inspect", "[red]nothing") == 1
    captured = capsys.readouterr()
    text = "'[red]nothing' does not exist.\nExpected a"
    assert captured.out == "" and captured.err.startswith(f"error: {text}")
    document = run_json(capsys, "inspect", "[red]nothing", code=1)
    assert document["error"].startswith(text) and document["kind"] == "CheckpointError"


# ---------------------------------------------------------------- measures


def test_measures_match_the_library(base: Path, adapters: Adapters, capsys: Captured) -> None:
    """The measures equal those of `measure` on the base's tensors."""
    args = (adapters["lora"], f"{adapters['oft']}:0.5")
    document = run_json(capsys, "inspect", *args, "--base", base, "--measure")
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    measures = measure(jaxmix.mix(lora, 0.5 * oft), load(base))
    assert [entry["adapter"] for entry in document["measures"]] == ["lora", "oft"]
    for entry in document["measures"]:
        name = entry["adapter"]
        assert (entry["norm"], entry["share"]) == (measures.norm(name), measures.share(name))
        for site, numbers in entry["sites"].items():
            assert numbers == vars(measures.sites[name][site])
    (pair,) = document["pairs"]
    assert pair["adapters"] == ["lora", "oft"] and document["needs_base"] == []
    assert list(pair["sites"]) == [f"model.layers.{i}.q_proj" for i in range(2)]
    assert main("inspect", *args, "--base", base, "--measure") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = ["lora", "2", f"{measures.norm('lora'):.4g}"]
    assert [line for line in lines if line[:3] == start]
    cosines = [entry.cosine for entry in measures.pairs["lora", "oft"].values()]
    pair = ["lora", "and", "oft", "2", f"{np.mean(cosines):.3f}"]
    assert [line for line in lines if line[:5] == pair]


def test_additive_families_are_measured_without_a_base(
    base: Path, adapters: Adapters, capsys: Captured
) -> None:
    """Additive families get the same measures without a base; the others are listed."""
    args = (adapters["lora"], adapters["loha"])
    bare = run_json(capsys, "inspect", *args, adapters["oft"], "--measure")
    full = run_json(capsys, "inspect", *args, "--base", base, "--measure")
    assert bare["needs_base"] == ["oft: OFT block 5 at model.layers.0.down_proj and 3 more"]
    for entry, other in zip(bare["measures"], full["measures"], strict=True):
        for site, numbers in entry["sites"].items():
            assert numbers == pytest.approx(other["sites"][site], rel=1e-5)
    assert main("inspect", adapters["lora"], adapters["oft"], "--measure") == 0
    assert (
        "not measured without the base (--base FOLDER):\n  oft: OFT block 5 at"
        in capsys.readouterr().out
    )
    document = run_json(capsys, "inspect", adapters["oft"], "--measure", code=1)
    assert document["error"] == (
        "these adapters need the base, which is not given:\n  oft: OFT block 5 at "
        "model.layers.0.down_proj and 3 more\nPass the model that they were trained on: "
        "--base FOLDER."
    )


def test_plot_writes_the_picture(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """`--plot` writes the picture; an unknown suffix is refused first."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "effects.png"
    assert main("inspect", adapters["lora"], "--plot", picture) == 0
    assert f"plot of the measures: {picture}\n" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = run_json(capsys, "inspect", adapters["lora"], "--plot", picture)
    assert document["picture"] == str(picture) and document["measures"]
    document = run_json(capsys, "inspect", adapters["lora"], "--plot", tmp_path / "x.gif", code=1)
    assert (
        document["kind"] == "UnsupportedError"
        and "x.gif has an unsupported format" in document["error"]
    )
