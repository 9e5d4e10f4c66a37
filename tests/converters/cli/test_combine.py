"""``jaxmix combine``: what `jaxmix.combine` makes, saved."""

from pathlib import Path
from typing import Any

import jax
import pytest

import jaxmix

from ..checkpoints import Adapters, contents, load, save_adapters
from .running import Captured, main, run, told


def same(folder: Path, expected: Any, tmp_path: Path) -> bool:
    """Whether a folder is what `jaxmix.save` writes of it."""
    place = jaxmix.save(expected, tmp_path / f"{folder.name}-expected")
    return contents(folder) == contents(place)


def test_loras(adapters: Adapters, tmp_path: Path) -> None:
    """Without a base, as PEFT combines them; the numbers after the colons are weights."""
    out = tmp_path / "both"
    words = ("-a", f"{adapters['lora']}:0.7", "-a", f"{adapters['lora']}:-0.3")
    done = run("combine", *words, "-m", "ties", "--density", 0.5, "--to", "peft", "-o", out)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{out}: ties of {adapters['lora']} × 0.7, {adapters['lora']} × -0.3",
            "LoRA rank 2 at 2 sites, strength 1 (model.layers.0.q_proj, …)",
        ],
    )
    lora = jaxmix.load(adapters["lora"])
    made = jaxmix.combine(
        [lora, lora], method="ties", density=0.5, weights=[0.7, -0.3], name="both"
    )
    assert contents(out) == contents(jaxmix.export_peft(made, tmp_path / "expected"))


def test_other_kinds(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """By what they change in the base; a saved mix counts as one, and what is random has a seed."""
    lora, loha, oft = (jaxmix.load(adapters[name]) for name in ("lora", "loha", "oft"))
    mixed = jaxmix.mix(lora, 0.5 * oft)
    saved = jaxmix.save(mixed, tmp_path / "saved")
    words = ("combine", "-a", saved, "-a", f"{adapters['loha']}:0.5", "--base", base)
    out = tmp_path / "out"
    options = ("-m", "dare_linear", "--density", 0.5, "--seed", 3, "--rank", 2)
    document = told(capsys, *words, *options, "-o", out)
    assert document == {
        "adapters": [
            {"path": str(saved), "weight": 1.0},
            {"path": str(adapters["loha"]), "weight": 0.5},
        ],
        "method": "dare_linear",
        "out": str(out),
        "format": "mix",
        "sites": [*dict.fromkeys([*lora.sites, *oft.sites, *loha.sites])],
        "is": "LoRA rank 2 at 4 sites, strength 1 (model.layers.0.q_proj, …)",
    }
    made = jaxmix.combine(
        [mixed, loha],
        load(base),
        method="dare_linear",
        weights=[1.0, 0.5],
        density=0.5,
        key=jax.random.key(3),
        rank=2,
        name="out",
    )
    assert same(out, made, tmp_path)


def test_methods_that_find_their_weights(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """There the numbers are strengths."""
    words = ("combine", "-a", f"{adapters['lora']}:0.5", "-a", adapters["loha"], "--base", base)
    told(capsys, *words, "-m", "sce", "--density", 0.5, "-o", tmp_path / "out")
    lora, loha = (jaxmix.load(adapters[name]) for name in ("lora", "loha"))
    made = jaxmix.combine([0.5 * lora, loha], load(base), method="sce", density=0.5, name="out")
    assert same(tmp_path / "out", made, tmp_path)


def test_refused(tmp_path: Path, capsys: Captured) -> None:
    """By the library, in its words; a name that is no method makes no sense."""
    lora = save_adapters(tmp_path / "a")["lora"]
    words = ("combine", "-a", lora, "-o", tmp_path / "out")
    document = told(capsys, *words, "-m", "slerp", code=1)
    assert document["error"] == "the method 'slerp' got 1 adapters, expected exactly two."
    assert told(capsys, *words, "-m", "mean", code=2)["kind"] == "UsageError"
    document = told(capsys, *words, "-m", "cat", "--to", "kohya", code=2)
    assert "'kohya' is none of mix, peft." in document["error"]
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
    assert document["error"].startswith(f"the method 'linear' has no use for {named}.")
