"""``jaxmix export`` writes a folder for PEFT: one LoRA or the separate parts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import jaxmix

from ..bases import Adapters, contents, load
from .running import Captured, main, run, run_json


def test_rank_writes_one_lora_and_its_errors(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """`--rank` writes the LoRA of `to_lora`, and reports its errors on stdout and in the file."""
    out = tmp_path / "out"
    args = ("-a", adapters["loha"], "-a", f"{adapters['oft']}:0.5", "--base", base, "--rank", 2)
    done = run("export", *args, "-o", out, module="jaxmix")
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
        jaxmix.compose(before, value) for value in (jaxmix.mix(loha, 0.5 * oft), jaxmix.load(out))
    )
    for site, error in errors.items():
        delta, low = (
            np.asarray(value[f"{site}.weight"]) - before[f"{site}.weight"] for value in (after, cut)
        )
        found = np.linalg.norm(delta - low) / np.linalg.norm(delta)
        np.testing.assert_allclose(found, error, rtol=1e-3)


def test_energy_chooses_the_ranks(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Additive families need no base; `--energy 1` keeps the whole effect."""
    args = ("export", "-a", adapters["lora"], "-a", f"{adapters['loha']}:0.5")
    whole = run_json(capsys, *args, "--energy", 1, "-o", tmp_path / "whole")
    assert max(whole["errors"].values()) < 1e-5
    assert whole["ranks"] == {f"model.layers.{i}.q_proj": 6 for i in range(2)}
    half = run_json(capsys, *args, "--energy", 0.5, "-o", tmp_path / "half")
    assert set(half["ranks"].values()) <= {1, 2} and 0.1 < min(half["errors"].values()) < 0.71
    assert half["adapters"] == [
        {"name": "lora", "strength": 1.0},
        {"name": "loha", "strength": 0.5},
    ]


def test_parts_are_written_as_folders(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Several parts become folders and a script, one a folder; strengths go into the scales."""
    args = ("-a", f"{adapters['lora']}:0.5", "-a", adapters["oft"])
    assert main("export", *args, "-o", tmp_path / "both", "--base-name", "owner/base") == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/both: lora × 0.5, then oft × 1\n2 folders and load_in_peft.py\n"
    )
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    place = jaxmix.export_peft(
        jaxmix.mix(0.5 * lora, oft), tmp_path / "same", base_model_name_or_path="owner/base"
    )
    assert contents(tmp_path / "both") == contents(place)
    document = run_json(capsys, "export", "-a", adapters["oft"], "-o", tmp_path / "one")
    assert document["folders"] == [] and set(contents(tmp_path / "one")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    args = ("export", "-a", adapters["oft"], "-o", tmp_path / "one")
    assert [main(*args), main(*args, "--force")] == [1, 0]


def test_peft_options_reach_the_config(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """Every command that writes PEFT folders takes PEFT's options; other formats reject them."""
    lora, options = adapters["lora"], ("--task-type", "CAUSAL_LM", "--base-name", "a/b")
    args = {
        "export": ("export", "-a", lora, "--rank", 2, "--base", base),
        "convert": ("convert", lora, "--to", "peft"),
        "combine": ("combine", "-a", lora, "-a", lora, "-m", "linear", "--to", "peft"),
    }
    for name, command in args.items():
        run_json(capsys, *command, *options, "--patterns", "-o", tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "a/b")
        # The next command keeps them without being told to.
        run_json(capsys, "export", "-a", tmp_path / name, "-o", tmp_path / f"{name}-again")
        again = json.loads((tmp_path / f"{name}-again" / "adapter_config.json").read_text())
        assert again["task_type"] == "CAUSAL_LM"
    for to in ("kohya", "recipe", "mix"):
        command = ("convert", lora, "--to", to, *options, "--patterns", "-o", tmp_path / "x")
        document = run_json(capsys, *command, code=2)
        text = f"--base-name, --task-type, --patterns does not apply to the format {to}."
        assert text in document["error"]
    assert main("export", "-a", lora, "--task-type", "CHAT", "-o", tmp_path / "x") == 2
    assert "'CHAT' is not one of CAUSAL_LM, FEATURE_EXTRACTION" in capsys.readouterr().err


def test_missing_base_is_reported(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """The error lists the adapters that need a base, and nothing is written."""
    args = ("export", "-a", adapters["oft"], "--rank", 2, "-o", tmp_path / "out")
    document = run_json(capsys, *args, code=1)
    assert document["error"].startswith("these adapters need the base, which is not given:\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "text"),
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
def test_invalid_ranks_are_usage_errors(
    args: tuple[object, ...], text: str, capsys: Captured
) -> None:
    """An invalid `--rank` or `--energy` is a usage error."""
    assert main("export", "-a", "x", "-o", "y", *args) == 2
    assert text in capsys.readouterr().err
