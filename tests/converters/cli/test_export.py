"""``jaxmix export``: a folder that PEFT loads, one LoRA or the parts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import jaxmix
from jaxmix.converters.cli.ranks import rank_of

from ..bases import Adapters, contents, load
from .running import Captured, main, run, told


def test_one_lora(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """As `to_lora` makes it, with the error that the cut makes, in words and in the file."""
    out = tmp_path / "out"
    words = ("-a", adapters["loha"], "-a", f"{adapters['oft']}:0.5", "--base", base, "--rank", 2)
    done = run("export", *words, "-o", out, module="jaxmix")
    assert done.returncode == 0
    with safe_open(out / "adapter_model.safetensors", "np") as file:
        errors = json.loads(file.metadata()["errors"])
    first, *others = sorted(errors, key=lambda site: -errors[site])
    assert done.stdout.splitlines()[:4] == [
        f"{out}: loha × 1, then oft × 0.5",
        "one LoRA of rank 2 at 4 sites",
        f"error ‖Δ − BA‖ / ‖Δ‖: mean {np.mean(list(errors.values())):.2%}, largest",
        f"  {errors[first]:.2%} at {first}",
    ]
    assert len(done.stdout.splitlines()) == 6 and len(others) == 3
    loha, oft = (jaxmix.load(adapters[name]) for name in ("loha", "oft"))
    before = load(base)
    after, cut = (
        jaxmix.compose(before, one) for one in (jaxmix.mix(loha, 0.5 * oft), jaxmix.load(out))
    )
    for site, error in errors.items():
        delta, low = (
            np.asarray(one[f"{site}.weight"]) - before[f"{site}.weight"] for one in (after, cut)
        )
        found = np.linalg.norm(delta - low) / np.linalg.norm(delta)
        np.testing.assert_allclose(found, error, rtol=1e-3)


def test_the_energy(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Additive kinds need no base; 1 keeps all."""
    words = ("export", "-a", adapters["lora"], "-a", f"{adapters['loha']}:0.5")
    whole = told(capsys, *words, "--energy", 1, "-o", tmp_path / "whole")
    assert max(whole["errors"].values()) < 1e-5
    assert whole["ranks"] == {f"model.layers.{i}.q_proj": 6 for i in range(2)}
    half = told(capsys, *words, "--energy", 0.5, "-o", tmp_path / "half")
    assert set(half["ranks"].values()) <= {1, 2} and 0.1 < min(half["errors"].values()) < 0.71
    assert half["adapters"] == [
        {"name": "lora", "strength": 1.0},
        {"name": "loha", "strength": 0.5},
    ]


def test_the_parts(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Several are folders and a script; one is a folder; a strength goes into its scale."""
    words = ("-a", f"{adapters['lora']}:0.5", "-a", adapters["oft"])
    assert main("export", *words, "-o", tmp_path / "both", "--base-name", "owner/base") == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/both: lora × 0.5, then oft × 1\n2 folders and load_in_peft.py\n"
    )
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    place = jaxmix.export_peft(
        jaxmix.mix(0.5 * lora, oft), tmp_path / "same", base_model_name_or_path="owner/base"
    )
    assert contents(tmp_path / "both") == contents(place)
    document = told(capsys, "export", "-a", adapters["oft"], "-o", tmp_path / "one")
    assert document["folders"] == [] and set(contents(tmp_path / "one")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    words = ("export", "-a", adapters["oft"], "-o", tmp_path / "one")
    assert [main(*words), main(*words, "--force")] == [1, 0]


def test_task_and_patterns(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """By every command that writes PEFT's folders; for another format they mean nothing."""
    lora, options = adapters["lora"], ("--task-type", "CAUSAL_LM", "--base-name", "a/b")
    words = {
        "export": ("export", "-a", lora, "--rank", 2, "--base", base),
        "convert": ("convert", lora, "--to", "peft"),
        "combine": ("combine", "-a", lora, "-a", lora, "-m", "linear", "--to", "peft"),
    }
    for name, command in words.items():
        told(capsys, *command, *options, "--patterns", "-o", tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "a/b")
        # They are kept by the next command, without a word.
        told(capsys, "export", "-a", tmp_path / name, "-o", tmp_path / f"{name}-again")
        again = json.loads((tmp_path / f"{name}-again" / "adapter_config.json").read_text())
        assert again["task_type"] == "CAUSAL_LM"
    for to in ("kohya", "recipe", "mix"):
        command = ("convert", lora, "--to", to, *options, "--patterns", "-o", tmp_path / "x")
        document = told(capsys, *command, code=2)
        text = f"--base-name, --task-type, --patterns does not apply to the format {to}."
        assert text in document["error"]
    assert main("export", "-a", lora, "--task-type", "CHAT", "-o", tmp_path / "x") == 2
    assert "'CHAT' is not one of CAUSAL_LM, FEATURE_EXTRACTION" in capsys.readouterr().err


def test_it_is_said_what_needs_the_base(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """And nothing is written."""
    words = ("export", "-a", adapters["oft"], "--rank", 2, "-o", tmp_path / "out")
    document = told(capsys, *words, code=1)
    assert document["error"].startswith("these adapters need the base, which is not given:\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--rank", 2, "--energy", 0.5),
            "--rank and --energy exclude each other. Use one of them.",
        ),
        (("--energy", 2), "--energy is 2, expected a number above 0 and at most 1."),
        (("--energy", 0), "--energy is 0, expected a number above 0 and at most 1."),
        (("--rank", 0), "Invalid value for '--rank'"),
    ],
)
def test_ranks_that_make_no_sense(words: tuple[object, ...], text: str, capsys: Captured) -> None:
    """A command line that makes no sense."""
    assert main("export", "-a", "x", "-o", "y", *words) == 2
    assert text in capsys.readouterr().err


def test_ranks() -> None:
    """As the library takes them."""
    given = [(None, None), (3, None), (None, 0.5), (None, 1.0)]
    assert [rank_of(*one) for one in given] == [None, 3, 0.5, "exact"]
