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
from jaxmix.families import Delta

from ...messages import full_text
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
    assert document["error"] == (
        "x.safetensors has the format 'qwix', whose reader takes alpha, axis, use_rslora, not "
        "--part PART, --scale …. Leave it out, or read another format: --from FORMAT."
    )


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
    assert document["error"].startswith("--prefix does not apply to peft, whose names")
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
    message = f"{place} exists. Choose another name, or replace it: force=True."
    with pytest.raises(CheckpointError, match=full_text(message)):
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


# ---------------------------------------------------------------- image models


FLUX = {
    "double_blocks.0.img_attn.qkv": (12, 6),
    "double_blocks.0.img_mlp.0": (8, 6),
    "double_blocks.0.img_mod.lin": (8, 6),
    "final_layer.adaLN_modulation.1": (4, 6),
}


def kohya_flux(file: Path) -> Path:
    """A LoRA of Flux as kohya's scripts write it."""
    draw, tensors = np.random.default_rng(0), dict[str, np.ndarray]()
    for module, (rows, columns) in FLUX.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = draw.normal(size=(2, columns)).astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = draw.normal(size=(rows, 2)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.ones((), np.float32)
    save_file(tensors, file)
    return file


def flux_base(folder: Path) -> Path:
    """The weights that these are in diffusers' names."""
    draw, at = np.random.default_rng(1), "transformer_blocks.0."
    shapes = {f"{at}attn.to_{x}": (4, 6) for x in "qkv"}
    shapes |= {f"{at}ff.net.0.proj": (8, 6), f"{at}norm1.linear": (8, 6)}
    shapes["norm_out.linear"] = (4, 6)
    base = {f"{n}.weight": draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    save_file(base, folder / "base.safetensors")
    return folder / "base.safetensors"


@pytest.mark.parametrize("to", ["diffusers", "kohya", "comfyui", "original"])
def test_flux_is_converted_without_a_base(to: str, tmp_path: Path, capsys: Captured) -> None:
    """A file of kohya's scripts gets the names of each program by the table of Flux."""
    source, base = kohya_flux(tmp_path / "style.safetensors"), load_file(flux_base(tmp_path))
    out = tmp_path / "out.safetensors"
    document = run_json(capsys, "convert", f"{source}:0.5", "--to", to, "-o", out)
    assert document["format"] == to and document["sites"] == {"style": list(FLUX)}
    first = {
        "diffusers": "transformer.norm_out.linear.lora_A.weight",
        "kohya": "lora_unet_double_blocks_0_img_attn_qkv.alpha",
        "comfyui": "diffusion_model.double_blocks.0.img_attn.qkv.alpha",
        "original": "double_blocks.0.img_attn.qkv.alpha",
    }
    assert min(load_file(out)) == first[to]
    want = jaxmix.compose(base, jaxmix.load(source, base=base, strength=0.5))
    assert_same(jaxmix.compose(base, jaxmix.load(out, base=base)), want)


def test_mix_becomes_one_lora(tmp_path: Path, capsys: Captured) -> None:
    """With `--rank` or `--energy`, adapters under other names become one LoRA."""
    source, base = kohya_flux(tmp_path / "a.safetensors"), flux_base(tmp_path)
    draw = np.random.default_rng(2)
    qkv = Delta(draw.normal(size=(4, 6)).astype(np.float32))
    other = jaxmix.save(jaxmix.Adapter({"transformer_blocks.0.attn.to_q": qkv}), tmp_path / "other")
    out = tmp_path / "out.safetensors"
    args = ("convert", f"{source}:0.5", other, "--to", "comfyui", "-o", out, "--base", base)
    document = run_json(capsys, *args, "--energy", 1)
    assert max(document["errors"].values()) < 1e-5
    weights = load_file(base)
    mixed = jaxmix.mix(0.5 * jaxmix.load(source, base=weights), jaxmix.load(other))
    want = jaxmix.compose(weights, mixed)
    assert_same(jaxmix.compose(weights, jaxmix.load(out, base=weights)), want)
    assert main(*args, "--rank", 1, "--force") == 0
    output = capsys.readouterr().out
    assert f"{out}: comfyui, a+adapter × 1, 6 sites" in output and "error ‖Δ − BA‖ / ‖Δ‖" in output
    # q, k and v of rank 1 are one update of rank 3.
    name = "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight"
    assert load_file(out)[name].shape == (12, 3)


def test_model_is_named(tmp_path: Path, capsys: Captured) -> None:
    """`--names` says which of several models it is; it does not apply to a mix."""
    file, out = tmp_path / "x.safetensors", tmp_path / "out.safetensors"
    ones = np.ones((2, 2), np.float32)
    at = "transformer.transformer_blocks.0.attn.to_out.0"
    save_file({f"{at}.lora_A.weight": ones, f"{at}.lora_B.weight": ones}, file)
    args = ("convert", file, "-o", out, "--to")
    document = run_json(capsys, *args, "kohya", code=1)
    assert document["error"] == (
        "x: its modules (transformer_blocks.0.attn.to_out.0 …) may be those of flux or "
        "hunyuan_video or qwen_image or sd3, which have different names in files of kohya's "
        "scripts. Say which model it is: --names flux, or pass its base: --base BASE."
    )
    run_json(capsys, *args, "kohya", "--names", "sd3")
    assert min(load_file(out)) == "lora_unet_joint_blocks_0_x_block_attn_proj.alpha"
    document = run_json(capsys, *args, "mix", "--names", "sd3", code=2)
    assert document["error"].startswith(
        "--names does not apply to mix, whose names are those of the sites."
    )
    document = run_json(capsys, "convert", file, "--to", "recipe", "-o", out, "--rank", 2, code=2)
    assert document["error"].startswith(
        "a recipe holds the paths of adapters, so --rank and --energy do not apply"
    )
