"""``jaxmix convert`` converts between formats and back without a change of the adapter's effect."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.adapters.mixfile.recipe import save_recipe
from jaxmix.errors import CheckpointError

from ..bases import Adapters, contents, load
from .running import Captured, main, run, run_json


def effects(path: object, base: Path, **options: Any) -> dict[str, np.ndarray]:
    """Returns the base's tensors with an adapter merged into them."""
    adapter = jaxmix.load(str(path), **options)
    return jax.tree.map(np.asarray, jaxmix.compose(load(base), adapter))


def assert_same(found: Any, expected: Any) -> None:
    """Asserts that tensors are equal up to rounding."""
    assert set(found) == set(expected)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "to", "prefix"),
    [("loha", "kohya", "lora_te1"), ("lora", "diffusers", "transformer")],
)
def test_conversion_there_and_back_keeps_the_effect(
    name: str,
    to: str,
    prefix: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    """A conversion and back keeps the effect on the base; the file contains the strength."""
    file = tmp_path / "x.safetensors"
    args = ("convert", f"{adapters[name]}:0.5", "--to", to, "--prefix", prefix, "-o", file)
    document = run_json(capsys, *args)
    sites = list(jaxmix.load(adapters[name]).sites)
    assert document == {
        "adapters": [{"name": name, "strength": 0.5}],
        "format": to,
        "out": str(file),
        "sites": {name: sites},
    }
    assert all(key.startswith(prefix) for key in load_file(file))
    assert main("convert", file, "--to", "peft", "--base", base, "-o", tmp_path / "back") == 0
    assert f"{tmp_path}/back: peft, x × 1, 2 sites\n" == capsys.readouterr().out
    want = effects(adapters[name], base, strength=0.5)
    assert_same(effects(tmp_path / "back", base), want)
    assert [main(*args), main(*args, "--force")] == [1, 0]


def test_several_adapters_become_a_mix(adapters: Adapters, tmp_path: Path) -> None:
    """Several adapters become a mix, equal bit for bit to one that `save` writes."""
    out = tmp_path / "both"
    done = run("convert", f"{adapters['lora']}:0.5", adapters["oft"], "--to", "mix", "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: mix, lora × 0.5, then oft × 1, 4 sites\n"
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    place = jaxmix.save(jaxmix.mix(0.5 * lora, oft), tmp_path / "expected")
    assert contents(out) == contents(place)


def test_reader_options_are_passed(tmp_path: Path, capsys: Captured) -> None:
    """`--from` forces the input format, and the readers' options are passed on."""
    file = tmp_path / "x.safetensors"
    ones = np.ones((2, 4), np.float32)
    names = ("a/kernel_lora_a", "a/kernel_lora_b")
    save_file(dict(zip(names, (ones.T.copy(), ones), strict=True)), file)
    args = ("convert", file, "--from", "qwix", "--to", "mix", "-o", tmp_path / "out")
    assert "alpha" in run_json(capsys, *args, code=1)["error"]
    run_json(capsys, *args, "--alpha", 4)
    (update,) = jaxmix.load(tmp_path / "out").updates.values()
    assert float(update.scale) == 2.0
    document = run_json(capsys, *args, "--part", "unet", "--scale", 2, "--axis", 1, code=1)
    assert "found part, scale" in document["error"]


def test_impossible_conversions_are_refused(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """Unsupported families, several adapters for a file of one, and unused prefixes are refused."""
    file = tmp_path / "x.safetensors"
    document = run_json(capsys, "convert", adapters["oft"], "--to", "kohya", "-o", file, code=1)
    assert "OFT, which has no form in LyCORIS's names" in document["error"]
    two = (adapters["lora"], adapters["loha"])
    document = run_json(capsys, "convert", *two, "--to", "kohya", "-o", file, code=1)
    assert document["error"] == (
        "a file of kohya holds one adapter, but 2 are given. Convert them one by one, or to a mix "
        "(peft, mix, recipe). `--rank` makes one LoRA of them."
    )
    args = ("convert", adapters["lora"], "--prefix", "x", "-o", tmp_path / "out", "--to")
    document = run_json(capsys, *args, "peft", code=2)
    assert document["error"].startswith(
        "Invalid value: --prefix does not apply to peft, whose names"
    )
    assert not list(tmp_path.glob("x*")) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- recipes


def test_recipe_lists_its_parts(
    adapters: Adapters, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe lists the paths of its parts, which need not exist yet, and loads as their mix."""
    folder = adapters["lora"].parent
    monkeypatch.chdir(folder.parent)
    args = ("convert", f"{folder}/lora:0.5", "adapters/oft", "owner/name:2", "--to", "recipe")
    assert main(*args, "-o", "r.json") == 0
    expected = f"r.json: recipe, {folder}/lora × 0.5, then adapters/oft × 1, then owner/name × 2\n"
    assert capsys.readouterr().out == expected
    assert json.loads(Path("r.json").read_text())["parts"] == [
        {"source": "./adapters/lora", "strength": 0.5},
        {"source": "./adapters/oft", "strength": 1.0},
        {"source": "owner/name", "strength": 2.0},
    ]
    document = run_json(capsys, *args[:-3], "--to", "recipe", "-o", "s.json")
    assert document["adapters"][0] == {"source": f"{folder}/lora", "strength": 0.5}
    mixed = jaxmix.load("s.json")
    assert [(part.name, part.strength) for part in mixed.parts] == [("lora", 0.5), ("oft", 1.0)]


def test_invalid_recipes_are_refused(tmp_path: Path) -> None:
    """Refuses a part outside the folder, a wrong suffix, an existing and an unwritable output."""
    (tmp_path / "in").mkdir()
    (tmp_path / "lora").mkdir()
    for sources, place, text in (
        ([(f"{tmp_path}/lora", 1.0)], "in/r.json", "parts outside of "),
        ([], "r.txt", "r.txt is not a valid name for a recipe, expected one that ends in .json."),
        ([], "no/r.json", "no/r.json can't be written: "),
    ):
        with pytest.raises(CheckpointError) as caught:
            save_recipe(sources, tmp_path / place)
        assert text in str(caught.value)
    place = save_recipe([], tmp_path / "r.json")
    with pytest.raises(CheckpointError, match=r"r\.json exists\. Give another name, or replace it"):
        save_recipe([], place)
    save_recipe([("owner/x", 1.0)], place, force=True)
    assert "owner/x" in place.read_text() and sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "lora",
        "r.json",
    ]


def test_similar_site_names_are_reported(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """Without a base, site names that may be one module are reported."""
    other = tmp_path / "other"
    shutil.copytree(adapters["lora"], other)
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key.replace("model.layers", "layers"): x for key, x in tensors.items()}, file)
    args = ("convert", adapters["lora"], other, "--to", "mix", "-o", tmp_path / "out")
    pairs = [[f"model.layers.{i}.q_proj", f"layers.{i}.q_proj"] for i in range(2)]
    assert run_json(capsys, *args)["look_alikes"] == pairs
    assert main(*args, "--force") == 0
    output = capsys.readouterr().out
    assert "note: different adapters change sites that may be one module under two names:" in output
    assert "They are written as different modules." in output
