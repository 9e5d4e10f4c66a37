"""``jaxmix convert``: from one format to another, and back to the same adapter."""

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
from .running import Captured, main, run, told


def effects(path: object, base: Path, **options: Any) -> dict[str, np.ndarray]:
    """The base's tensors with an adapter in them."""
    adapter = jaxmix.load(str(path), **options)
    return jax.tree.map(np.asarray, jaxmix.compose(load(base), adapter))


def assert_same(one: Any, other: Any) -> None:
    """Tensors that are equal but for rounding."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "to", "prefix"),
    [("loha", "kohya", "lora_te1"), ("lora", "diffusers", "transformer")],
)
def test_there_and_back(
    name: str,
    to: str,
    prefix: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    """The same effect on the base; the strength is in the file."""
    file = tmp_path / "x.safetensors"
    words = ("convert", f"{adapters[name]}:0.5", "--to", to, "--prefix", prefix, "-o", file)
    document = told(capsys, *words)
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
    assert [main(*words), main(*words, "--force")] == [1, 0]


def test_in_a_process(adapters: Adapters, tmp_path: Path) -> None:
    """Several as a mix, which is loaded again bit for bit."""
    out = tmp_path / "both"
    done = run("convert", f"{adapters['lora']}:0.5", adapters["oft"], "--to", "mix", "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: mix, lora × 0.5, then oft × 1, 4 sites\n"
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    place = jaxmix.save(jaxmix.mix(0.5 * lora, oft), tmp_path / "expected")
    assert contents(out) == contents(place)


def test_what_is_read(tmp_path: Path, capsys: Captured) -> None:
    """The format can be forced, and the readers' options are handed on."""
    file = tmp_path / "x.safetensors"
    ones = np.ones((2, 4), np.float32)
    names = ("a/kernel_lora_a", "a/kernel_lora_b")
    save_file(dict(zip(names, (ones.T.copy(), ones), strict=True)), file)
    words = ("convert", file, "--from", "qwix", "--to", "mix", "-o", tmp_path / "out")
    assert "alpha" in told(capsys, *words, code=1)["error"]
    told(capsys, *words, "--alpha", 4)
    (update,) = jaxmix.load(tmp_path / "out").updates.values()
    assert float(update.scale) == 2.0
    document = told(capsys, *words, "--part", "unet", "--scale", 2, "--axis", 1, code=1)
    assert "found part, scale" in document["error"]


def test_refused(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """What can't be said in a format, by its writer; several in a file of one; a prefix of none."""
    file = tmp_path / "x.safetensors"
    document = told(capsys, "convert", adapters["oft"], "--to", "kohya", "-o", file, code=1)
    assert "OFT, which has no form in LyCORIS's names" in document["error"]
    two = (adapters["lora"], adapters["loha"])
    document = told(capsys, "convert", *two, "--to", "kohya", "-o", file, code=1)
    assert document["error"] == (
        "a file of kohya holds one adapter, but 2 are given. Convert them one by one, or to a mix "
        "(peft, mix, recipe). `jaxmix export --rank` makes one LoRA of them."
    )
    words = ("convert", adapters["lora"], "--prefix", "x", "-o", tmp_path / "out", "--to")
    document = told(capsys, *words, "peft", code=2)
    assert document["error"].startswith(
        "Invalid value: --prefix does not apply to peft, whose names"
    )
    assert not list(tmp_path.glob("x*")) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- recipes


def test_a_recipe(adapters: Adapters, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where the parts are, and reads as their mix; nothing need be there yet."""
    folder = adapters["lora"].parent
    monkeypatch.chdir(folder.parent)
    words = ("convert", f"{folder}/lora:0.5", "adapters/oft", "owner/name:2", "--to", "recipe")
    assert main(*words, "-o", "r.json") == 0
    said = f"r.json: recipe, {folder}/lora × 0.5, then adapters/oft × 1, then owner/name × 2\n"
    assert capsys.readouterr().out == said
    assert json.loads(Path("r.json").read_text())["parts"] == [
        {"source": "./adapters/lora", "strength": 0.5},
        {"source": "./adapters/oft", "strength": 1.0},
        {"source": "owner/name", "strength": 2.0},
    ]
    document = told(capsys, *words[:-3], "--to", "recipe", "-o", "s.json")
    assert document["adapters"][0] == {"source": f"{folder}/lora", "strength": 0.5}
    mixed = jaxmix.load("s.json")
    assert [(part.name, part.strength) for part in mixed.parts] == [("lora", 0.5), ("oft", 1.0)]


def test_recipes_that_are_refused(tmp_path: Path) -> None:
    """A part outside, a name that is none, a place that is taken or closed."""
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


def test_two_names_for_one_module(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """They are reported where there is no base to tell."""
    other = tmp_path / "other"
    shutil.copytree(adapters["lora"], other)
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key.replace("model.layers", "layers"): x for key, x in tensors.items()}, file)
    words = ("convert", adapters["lora"], other, "--to", "mix", "-o", tmp_path / "out")
    pairs = [[f"model.layers.{i}.q_proj", f"layers.{i}.q_proj"] for i in range(2)]
    assert told(capsys, *words)["look_alikes"] == pairs
    assert main(*words, "--force") == 0
    said = capsys.readouterr().out
    assert "note: different adapters change sites that may be one module under two names:" in said
    assert "They are written as different modules." in said
