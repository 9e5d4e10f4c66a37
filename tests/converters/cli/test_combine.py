"""``jaxmix combine``: what `jaxmix.combine` makes, saved."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.families import LoRA
from jaxmix.placement.layout import NAMES

from ..bases import Adapters, contents, load, save_adapters
from .running import Captured, main, run, told


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library is called with from now on, in place of a call."""
    calls: list[Any] = []

    def pretend(*args: Any, **options: Any) -> jaxmix.Adapter:
        calls.append((args, options))
        return jaxmix.Adapter({"x": LoRA(np.ones((1, 2)), np.ones((3, 1)), 1.0)})

    # By its module: the package has the command under this name.
    monkeypatch.setattr(sys.modules["jaxmix.converters.cli.combine"], "combined", pretend)
    return calls


def test_loras(adapters: Adapters, tmp_path: Path) -> None:
    """Without a base, as PEFT combines them; the numbers after the colons are weights."""
    out = tmp_path / "both"
    words = ("-a", f"{adapters['lora']}:0.7", "-a", f"{adapters['lora']}:-0.3")
    done = run("combine", *words, "-m", "cat", "--to", "peft", "-o", out)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{out}: cat of {adapters['lora']} × 0.7, {adapters['lora']} × -0.3",
            "LoRA rank 4 at 2 sites, strength 1 (model.layers.0.q_proj, …)",
        ],
    )
    lora = jaxmix.load(adapters["lora"])
    made = jaxmix.combine([lora, lora], method="cat", weights=[0.7, -0.3], name="both")
    assert contents(out) == contents(jaxmix.export_peft(made, tmp_path / "expected"))


def test_other_kinds(
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what they change in the base; a saved mix counts as one, and what is random has a seed."""
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    saved = jaxmix.save(jaxmix.mix(lora, 0.5 * oft), tmp_path / "saved")
    calls, out = recorded(monkeypatch), tmp_path / "out"
    words = ("combine", "-a", saved, "-a", f"{adapters['loha']}:0.5", "--base", base, "-o", out)
    options = ("-m", "dare_ties", "--density", 0.5, "--seed", 3, "--rank", 2)
    document = told(capsys, *words, *options, "--majority-sign", "frequency")
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
    assert [[(part.name, part.strength) for part in one.parts] for one in groups] == [
        [("lora", 1.0), ("oft", 0.5)],
        [("loha", 1.0)],
    ]
    assert set(params) == set(load(base)) and how.pop("key") == jax.random.key(3)
    assert how.pop("layout") == replace(NAMES, conv1d="")  # as the base's config.json says
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


def test_methods_that_find_their_weights(
    adapters: Adapters, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the numbers are strengths."""
    calls = recorded(monkeypatch)
    words = ("combine", "-a", f"{adapters['lora']}:0.5", "-a", adapters["loha"])
    more = ("-m", "sce", "--density", 0.5, "--energy", 0.9, "-o", tmp_path / "out")
    told(capsys, *words, *more)
    (((groups, params), how),) = calls
    assert [one.strength for one in groups] == [0.5, 1.0]
    assert (params, how["weights"], how["key"], how["rank"]) == (None, None, None, 0.9)


def test_refused(tmp_path: Path, capsys: Captured) -> None:
    """By the library, in its words; a name that is no method makes no sense."""
    lora = save_adapters(tmp_path / "a")["lora"]
    words = ("combine", "-a", lora, "-o", tmp_path / "out")
    document = told(capsys, *words, "-m", "slerp", code=1)
    assert document["error"] == "the method 'slerp' got 1 adapters, expected exactly two."
    assert told(capsys, *words, "-m", "mean", code=2)["kind"] == "UsageError"
    document = told(capsys, *words, "-m", "cat", "--to", "kohya", code=2)
    assert "'kohya' is not one of mix, peft." in document["error"]
    assert main(*words, "-m", "linear") == 0
    assert main(*words, "-m", "linear") == 1
    assert main(*words, "-m", "linear", "--force") == 0


@pytest.mark.parametrize("option", ["--density", "--outliers", "--majority-sign", "--seed"])
def test_options_are_handed_on(option: str, tmp_path: Path, capsys: Captured) -> None:
    """Each of them reaches the library, which has no use for it here."""
    lora = save_adapters(tmp_path / "a")["lora"]
    value = "total" if option == "--majority-sign" else 1
    words = ("combine", "-a", lora, "-o", tmp_path / "out", "-m", "linear", option, value)
    document = told(capsys, *words, code=1)
    named = {"--seed": "key", "--majority-sign": "majority_sign"}.get(option, option[2:])
    assert document["error"].startswith(f"the method 'linear' does not use {named}.")


def renamed(path: Path, folder: Path, old: str, new: str) -> Path:
    """A PEFT folder with other names in its keys."""
    shutil.copytree(path, folder)
    file = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): x for key, x in load_file(file).items()}, file)
    return folder


def test_other_names(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Without a base: adapters that share no site are an error, and the rest is reported."""
    other = renamed(adapters["lora"], tmp_path / "other", "model.layers", "layers")
    words = ("combine", "-a", adapters["lora"], "-m", "cat", "-o", tmp_path / "out")
    failed = told(capsys, *words, "-a", other, code=1)
    assert failed["kind"] == "AdapterError" and "they share no site" in failed["error"]
    assert "layers.0.q_proj" in failed["error"] and not (tmp_path / "out").exists()
    some = renamed(adapters["lora"], tmp_path / "some", "model.layers.1", "layers.1")
    made = told(capsys, *words, "-a", some)
    assert made["partial"] == {"model.layers.1.q_proj": ["lora"], "layers.1.q_proj": ["some"]}
    assert made["look_alikes"] == [["model.layers.1.q_proj", "layers.1.q_proj"]]
    assert main(*words, "-a", some, "--force") == 0
    said = capsys.readouterr().out
    assert "note: 2 of 3 sites are changed by some of the adapters only" in said
    assert "note: different adapters change sites that may be one module under two names:" in said


def test_wrappers_in_one_file(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """The same sites under one name."""
    other = renamed(adapters["lora"], tmp_path / "other", "base_model", "_orig_mod.base_model")
    words = ("combine", "-a", adapters["lora"], "-a", other, "-m", "cat", "-o", tmp_path / "out")
    made = told(capsys, *words)
    assert "partial" not in made and len(made["sites"]) == 2
