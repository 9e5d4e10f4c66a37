"""``jaxmix combine`` saves the result of `jaxmix.combine`."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix import combining
from jaxmix.families import LoRA
from jaxmix.placement.layout import NAMES

from ..bases import Adapters, contents, load, save_adapters
from .running import Captured, main, run, run_json


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the library's function by one that records its calls, and returns the calls."""
    calls: list[Any] = []

    def pretend(*args: Any, **options: Any) -> jaxmix.Adapter:
        calls.append((args, options))
        return jaxmix.Adapter({"x": LoRA(np.ones((1, 2)), np.ones((3, 1)), 1.0)})

    monkeypatch.setattr(combining, "combine", pretend)
    return calls


def test_loras_combine_without_a_base(adapters: Adapters, tmp_path: Path) -> None:
    """LoRAs combine as in PEFT; the numbers after the colons are weights."""
    out = tmp_path / "both"
    args = ("-a", f"{adapters['lora']}:0.7", "-a", f"{adapters['lora']}:-0.3")
    done = run("combine", *args, "-m", "cat", "--to", "peft", "-o", out)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{out}: cat of {adapters['lora']} × 0.7, {adapters['lora']} × -0.3",
            "LoRA rank 4 at 2 sites, strength 1 (model.layers.0.q_proj, …)",
        ],
    )
    lora = jaxmix.load(adapters["lora"])
    combined = jaxmix.combine([lora, lora], method="cat", weights=[0.7, -0.3], name="both")
    assert contents(out) == contents(jaxmix.export_peft(combined, tmp_path / "expected"))


def test_other_families_combine_with_a_base(
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other families combine through the base; a saved mix counts as one; a seed is passed."""
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    saved = jaxmix.save(jaxmix.mix(lora, 0.5 * oft), tmp_path / "saved")
    calls, out = recorded(monkeypatch), tmp_path / "out"
    args = ("combine", "-a", saved, "-a", f"{adapters['loha']}:0.5", "--base", base, "-o", out)
    options = ("-m", "dare_ties", "--density", 0.5, "--seed", 3, "--rank", 2)
    document = run_json(capsys, *args, *options, "--majority-sign", "frequency")
    assert document == {
        "adapters": [
            {"path": str(saved), "weight": 1.0},
            {"path": str(adapters["loha"]), "weight": 0.5},
        ],
        "method": "dare_ties",
        "out": str(out),
        "format": "mix",
        "sites": ["x"],
        "is": "LoRA rank 1 at 1 site, strength 1 (x)",
    }
    (((groups, params), how),) = calls
    assert [[(part.name, part.strength) for part in group.parts] for group in groups] == [
        [("lora", 1.0), ("oft", 0.5)],
        [("loha", 1.0)],
    ]
    assert set(params) == set(load(base)) and how.pop("key") == jax.random.key(3)
    assert callable(how.pop("progress"))
    assert how.pop("layout") == replace(NAMES, conv1d="")  # as in the base's config.json
    assert how == {
        "method": "dare_ties",
        "weights": [1.0, 0.5],
        "density": 0.5,
        "majority_sign": "frequency",
        "outliers": None,
        "rank": 2,
        "name": "out",
    }
    assert repr(jaxmix.load(out)) == "adapter: LoRA rank 1 at 1 site, strength 1 (x)"


def test_numbers_are_strengths_if_the_method_finds_weights(
    adapters: Adapters, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For methods that determine the weights, the numbers after the colons are strengths."""
    calls = recorded(monkeypatch)
    args = ("combine", "-a", f"{adapters['lora']}:0.5", "-a", adapters["loha"])
    more = ("-m", "sce", "--density", 0.5, "--energy", 0.9, "-o", tmp_path / "out")
    run_json(capsys, *args, *more)
    (((groups, params), how),) = calls
    assert [group.strength for group in groups] == [0.5, 1.0]
    assert (params, how["weights"], how["key"], how["rank"]) == (None, None, None, 0.9)


def test_invalid_requests_are_refused(tmp_path: Path, capsys: Captured) -> None:
    """The library's errors are reported; an unknown method is a usage error."""
    lora = save_adapters(tmp_path / "a")["lora"]
    args = ("combine", "-a", lora, "-o", tmp_path / "out")
    document = run_json(capsys, *args, "-m", "slerp", code=1)
    assert document["error"] == "the method 'slerp' got 1 adapter, expected exactly two."
    assert run_json(capsys, *args, "-m", "mean", code=2)["kind"] == "UsageError"
    document = run_json(capsys, *args, "-m", "cat", "--to", "kohya", code=2)
    assert "'kohya' is not one of mix, peft." in document["error"]
    assert main(*args, "-m", "linear") == 0
    assert main(*args, "-m", "linear") == 1
    assert main(*args, "-m", "linear", "--force") == 0


def test_dare_without_a_seed_names_the_option(adapters: Adapters, capsys: Captured) -> None:
    """The library asks for a key, the program for a seed."""
    args = ("-a", adapters["lora"], "-a", adapters["lora"], "-m", "dare_linear", "--density", 0.5)
    assert main("combine", *args, "-o", "out") == 2
    expected = "dare_linear drops random entries, so it needs a seed: --seed 0."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--density", "--outliers", "--majority-sign", "--seed"])
def test_options_reach_the_library(option: str, tmp_path: Path, capsys: Captured) -> None:
    """Each option reaches the library, which has no use for it with this method."""
    lora = save_adapters(tmp_path / "a")["lora"]
    value = "total" if option == "--majority-sign" else 1
    args = ("combine", "-a", lora, "-o", tmp_path / "out", "-m", "linear", option, value)
    document = run_json(capsys, *args, code=1)
    named = {"--seed": "key", "--majority-sign": "majority_sign"}.get(option, option[2:])
    assert document["error"].startswith(f"the method 'linear' does not use {named}.")


def renamed(path: Path, folder: Path, old: str, new: str) -> Path:
    """Copies a PEFT folder and replaces a part of its keys' names."""
    shutil.copytree(path, folder)
    file = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): x for key, x in load_file(file).items()}, file)
    return folder


def test_different_names_are_reported(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Without a base, adapters without common sites are an error; other differences are noted."""
    other = renamed(adapters["lora"], tmp_path / "other", "model.layers", "layers")
    args = ("combine", "-a", adapters["lora"], "-m", "cat", "-o", tmp_path / "out")
    failed = run_json(capsys, *args, "-a", other, code=1)
    assert failed["kind"] == "AdapterError" and "they share no site" in failed["error"]
    assert "layers.0.q_proj" in failed["error"] and not (tmp_path / "out").exists()
    some = renamed(adapters["lora"], tmp_path / "some", "model.layers.1", "layers.1")
    made = run_json(capsys, *args, "-a", some)
    assert made["partial"] == {"model.layers.1.q_proj": ["lora"], "layers.1.q_proj": ["some"]}
    assert made["look_alikes"] == [["model.layers.1.q_proj", "layers.1.q_proj"]]
    assert main(*args, "-a", some, "--force") == 0
    output = capsys.readouterr().out
    assert "note: 2 of 3 sites are changed by some of the adapters only" in output
    assert "note: different adapters change sites that may be one module under two names:" in output


def test_wrapper_names_are_removed(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Sites under a wrapper's name are the same sites."""
    other = renamed(adapters["lora"], tmp_path / "other", "base_model", "_orig_mod.base_model")
    args = ("combine", "-a", adapters["lora"], "-a", other, "-m", "cat", "-o", tmp_path / "out")
    made = run_json(capsys, *args)
    assert "partial" not in made and len(made["sites"]) == 2
