"""The commands with a pipeline of diffusers as base."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix

from ..pipelines import attention, factors, merged_by_hand, save_pipeline, tensors_of
from .running import Captured, main, run_json

PEFT = ("lora_A.weight", "lora_B.weight")


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    """Two transformers, and a file that fits either."""
    base = save_pipeline(tmp_path / "wan", "wan")
    tensors = tensors_of(base)
    for seed, name in ((1, "high"), (2, "low")):
        own = factors(tensors, "transformer", "diffusion_model.{}".format, PEFT, seed=seed)
        save_file(
            {k: x for k, x in own.items() if not k.endswith(".alpha")},
            tmp_path / f"{name}.safetensors",
        )
    return base


def test_part_is_passed_for_each_adapter(wan: Path, tmp_path: Path, capsys: Captured) -> None:
    """`--part` is repeated for each adapter, in order."""
    files = [word for name in ("high", "low") for word in ("-a", tmp_path / f"{name}.safetensors")]
    parts = ["--part", "", "--part", "transformer_2"]
    found = run_json(capsys, "merge", wan, *files, *parts, "-o", tmp_path / "out", "--verify")
    assert found["verified"]["ok"]
    tensors, made = tensors_of(wan), tensors_of(tmp_path / "out")
    for seed, component in ((1, "transformer"), (2, "transformer_2")):
        right = merged_by_hand(tensors, component, seed=seed, alpha=False)
        for module in attention(tensors, component):
            name = f"{component}.{module}.weight"
            assert np.allclose(made[name], right[name], rtol=1e-5, atol=1e-5)
    assert len(found["changed"]) == 2 * len(attention(tensors, "transformer"))


def test_number_of_parts(wan: Path, tmp_path: Path, capsys: Captured) -> None:
    """Once, or once for each."""
    args = ["-a", tmp_path / "high.safetensors"] * 3
    parts = ["--part", "transformer", "--part", "transformer_2"]
    assert main("merge", wan, *args, *parts, "-o", tmp_path / "out") == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--part is given 2 times for 3 adapters, expected once, or once for each adapter" in text


def test_messages_spell_the_option(wan: Path, tmp_path: Path, capsys: Captured) -> None:
    """Errors of loading and of merging say `--part` as it is written here."""
    file = tmp_path / "high.safetensors"
    assert main("merge", wan, "-a", file, "-o", tmp_path / "out", "--part", "unet_2") == 1
    text = capsys.readouterr().err
    assert "--part unet_2 names a component that is absent: the base has no unet_2" in text
    folder = jaxmix.export_peft(jaxmix.load(file), tmp_path / "peft")
    assert main("merge", wan, "-a", folder, "-o", tmp_path / "out") == 1
    assert "adapter was trained: --part transformer." in capsys.readouterr().err
    args = ("merge", wan, "-a", folder, "--part", "transformer_2", "-o", tmp_path / "out")
    assert main(*args) == 0


def test_other_commands(wan: Path, tmp_path: Path, capsys: Captured) -> None:
    """`inspect`, `convert`, `combine` and `export` take the pipeline as base."""
    file, base = tmp_path / "high.safetensors", ("--base", wan)
    second = ("--part", "transformer_2")
    found = run_json(capsys, "inspect", file, *base, *second, "--measure")
    (measured,) = found["measures"]
    assert all(site.startswith("transformer_2.blocks.0.") for site in measured["sites"])
    sites = list(measured["sites"])
    args = ("convert", file, *base, *second, "--to", "mix", "-o", tmp_path / "mix")
    assert run_json(capsys, *args)["sites"] == {"high": sites}
    run_json(capsys, "merge", wan, "-a", tmp_path / "mix", "-o", tmp_path / "out")
    args = ("export", "-a", file, *base, *second, "--rank", "1", "-o", tmp_path / "lora")
    assert run_json(capsys, *args)["ranks"] == dict.fromkeys(sites, 1)
    two = ("-a", file, "-a", tmp_path / "low.safetensors", "-m", "ties", "--density", "0.5")
    run_json(capsys, "combine", *two, *base, *second, "-o", tmp_path / "both")
    assert jaxmix.load(tmp_path / "both").parts[0].sites == tuple(sites)
