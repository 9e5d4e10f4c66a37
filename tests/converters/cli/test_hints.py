"""Errors of the library name the command line's options and commands, not Python's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.cli.hints import spelled
from jaxmix.errors import JaxmixError, option, remedy, spelling, to_lora_call
from jaxmix.families import LoRA

from ...messages import full_text
from ..bases import Adapters, save_adapter
from .running import Captured, main

FLAGS = {
    "export": {"--rank": "RANK", "--energy": "SHARE"},
    "convert": {"--from": "FORMAT", "--rank": "RANK"},
    "merge": {"--head-class": "CLASS", "--force": "…"},
}


@pytest.mark.parametrize(
    ("command", "name", "value", "text"),
    [
        ("export", "rank", 16, "--rank 16"),
        ("export", "rank", 0.9, "--energy 0.9"),
        ("export", "rank", "exact", "--energy 1"),
        ("export", "rank", ..., "--rank RANK"),
        ("convert", "format", "peft", "--from peft"),
        ("merge", "new_head", "BertForTokenClassification", "--head-class "
         "BertForTokenClassification"),
        ("merge", "force", True, "--force"),
        ("merge", "rank", ..., "--rank RANK with `jaxmix convert`, and use its output"),
    ],
)  # fmt: skip
def test_spelling(command: str, name: str, value: Any, text: str) -> None:
    with spelling(spelled(command, FLAGS)):
        assert option(name, value, of="load(path") == text


def test_remedies_outside_the_program_are_those_of_python() -> None:
    assert remedy("jaxmix.save", "`jaxmix convert`") == "jaxmix.save"
    assert to_lora_call("mix") == "jaxmix.to_lora(mix, params)"
    with spelling(spelled("export", FLAGS)):
        assert remedy("jaxmix.save", "`jaxmix convert`") == "`jaxmix convert`"
        assert to_lora_call("mix") == "--rank RANK"


def refused(capsys: Captured, *args: object) -> str:
    """Returns the error of a refused input."""
    assert main(*args) == 1
    return capsys.readouterr().err.removeprefix("error: ").removesuffix("\n")


def test_formats_that_hold_no_rotation(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """The remedy is `--rank`, which convert and export have."""
    message = refused(
        capsys, "convert", adapters["oft"], "--to", "diffusers", "-o", tmp_path / "x.safetensors"
    )
    sites = [f"model.layers.{i}.{name}" for i in range(2) for name in ("q_proj", "down_proj")]
    heading, *listed, remedy_line = message.split("\n")
    assert heading == "oft: files for diffusers hold LoRA and DoRA only, and this adapter has:"
    assert sorted(listed) == sorted(f"  {site}: OFT" for site in sites)
    assert remedy_line == (
        "Write it for ComfyUI or kohya's scripts, which read more kinds. Or convert it to a LoRA: "
        "--rank RANK."
    )
    message = refused(capsys, "export", "-a", f"{adapters['oft']}:0.5", "-o", tmp_path / "x")
    assert message.startswith("oft has strength 0.5, which PEFT does not have for:\n")
    assert message.endswith("\nExport it at strength 1, or convert it to a LoRA: --rank RANK.")


def test_combine(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """The base, the rank and the weights are named as they are typed."""
    out = ("-o", tmp_path / "x")
    two = ("combine", "-a", adapters["lora"], "-a", adapters["lora"])
    keeps = "the method 'linear' keeps the rank of LoRAs, but got {}. Leave it out, or use 'svd'."
    assert refused(capsys, *two, "-m", "linear", "-r", 2, *out) == keeps.format("--rank 2")
    for energy, shown in ((0.9, 0.9), (1, 1)):
        message = refused(capsys, *two, "-m", "linear", "--energy", energy, *out)
        assert message == keeps.format(f"--energy {shown}")
    kinds = ("combine", "-a", adapters["lora"], "-a", adapters["oft"])
    message = refused(capsys, *kinds, "-m", "cat", *out)
    assert message.startswith("combine got no base, but some updates are not LoRAs:\n  oft: ")
    assert message.endswith("\nOnly LoRAs can be combined without one: pass --base BASE.")
    message = refused(capsys, *kinds, "-m", "svd", "--base", base, *out)
    assert message.startswith("the method 'svd' got no rank, but some updates are not LoRAs:\n")
    assert message.endswith(
        "\nPass a rank such as --rank 16, or a share of the energy such as --energy 0.99."
    )
    arc = ("combine", "-a", f"{adapters['lora']}:1.5", "-a", f"{adapters['loha']}:-0.5")
    assert refused(capsys, *arc, "-m", "slerp", "--base", base, *out) == (
        "the method 'slerp' got the weights [1.5, -0.5], expected weights of at least 0 that are "
        "not both 0: it goes from the first adapter to the second, up to w₂/(w₁ + w₂)."
    )


def test_combine_of_adapters_without_a_common_site(tmp_path: Path, capsys: Captured) -> None:
    plain = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    for name in ("a", "b"):
        factors = {
            f"{name}.proj.lora_A.weight": np.ones((1, 3), np.float32),
            f"{name}.proj.lora_B.weight": np.ones((2, 1), np.float32),
        }
        save_adapter(tmp_path / name, plain, factors)
    args = ("combine", "-a", tmp_path / "a", "-a", tmp_path / "b", "-m", "svd")
    assert refused(capsys, *args, "-o", tmp_path / "x").endswith(
        "If they are for different modules, pass the base (--base BASE), or mix them instead."
    )


def test_square_difference_of_unknown_orientation() -> None:
    lora = LoRA(np.ones((1, 3)), np.ones((3, 1)), 1.0, transposed=None)
    pair = [jaxmix.Adapter({"proj": lora}, name=name) for name in "ab"]
    with spelling(spelled("combine", FLAGS)), pytest.raises(JaxmixError) as caught:
        jaxmix.combine(pair, method="model_stock")
    assert str(caught.value).endswith("a dense update depends. Pass the base: --base BASE.")


def test_recipe_of_adapters_elsewhere(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "r").mkdir()
    file = tmp_path / "r" / "x.json"
    message = refused(capsys, "convert", adapters["lora"], "--to", "recipe", "-o", file)
    assert message.endswith(
        "\nExpected paths in it or below, so the folder can be moved. Write the recipe "
        "elsewhere, or save the mix with its arrays: --to mix."
    )
    file.write_text(json.dumps({"format": "jaxmix", "version": 1, "parts": [{"source": "../y"}]}))
    assert refused(capsys, "inspect", file).endswith(
        "Move the recipe to a folder above its adapters, or save a mix with `jaxmix convert --to "
        "mix`."
    )


def test_part_that_a_file_lacks(tmp_path: Path, capsys: Captured) -> None:
    names = ("lora_unet_a", "lora_te1_b")
    ones = np.ones((2, 2), np.float32)
    tensors = {f"{n}.lora_{way}.weight": ones for n in names for way in ("up", "down")}
    save_file(tensors, tmp_path / "x.safetensors")
    args = ("convert", tmp_path / "x.safetensors", "--part", "lora_te2", "--to", "peft")
    assert refused(capsys, *args, "-o", tmp_path / "out") == (
        f"{tmp_path / 'x.safetensors'} has no keys for --part lora_te2, expected one of lora_te1, "
        "lora_unet."
    )


def test_option_that_a_format_does_not_take(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    args = ("export", "-a", adapters["lora"], "--part", "unet", "-o", tmp_path / "x")
    message = refused(capsys, *args)
    assert " has the format 'peft', whose reader takes " in message
    assert message.endswith(
        ", not --part PART. Leave it out, or read another format: --from FORMAT with `jaxmix "
        "convert`, and use its output."
    )


def test_unknown_name_map(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    args = ("merge", base, "-a", adapters["lora"], "--names", "mixtrall", "-o", tmp_path / "x")
    assert refused(capsys, *args) == (
        "there is no name map 'mixtrall', expected the model_type of one of transformers' models, "
        "such as 'mixtral', '' for no map, or nothing to find it."
    )


def test_python_names_the_same_options(adapters: Adapters) -> None:
    """Outside of the program the messages name calls of Python."""
    pair = [jaxmix.load(adapters["lora"]), jaxmix.load(adapters["lora"], "other")]
    message = (
        "the method 'linear' keeps the rank of LoRAs, but got rank=2. Leave it out, or use 'svd'."
    )
    with pytest.raises(JaxmixError, match=full_text(message)):
        jaxmix.combine(pair, method="linear", rank=2)
