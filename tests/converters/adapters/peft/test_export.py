"""`load` reads what `export_peft` writes bit for bit, without PEFT."""

import ast
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import jaxmix
from jaxmix import Adapter
from jaxmix.affine import Base
from jaxmix.errors import CheckpointError
from jaxmix.families import (
    OFT,
    AdaLoRA,
    Delta,
    ExpertLoRA,
    KaSA,
    LoHa,
    LoKr,
    LoRA,
    Rebase,
    Replace,
    SHiRA,
    Together,
    Tokens,
    Update,
)

from ....messages import full_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BFLOAT16 = ml_dtypes.bfloat16


def n(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    """Numbers."""
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


def lora(out: int = 6, size: int = 4, rank: int = 2, scale: Any = 1.5, **more: Any) -> LoRA:
    """A LoRA of a layer."""
    return LoRA(n(rank, size), n(out, rank), scale, **more)


def experts(out: int, size: int, rank: int = 2, in_first: bool = False) -> ExpertLoRA:
    """A LoRA of three experts."""
    return ExpertLoRA(n(3, rank, size), n(3, out, rank), 1.5, in_first)


def tokens(*rows: int, **more: Any) -> Tokens:
    """Rows of an embedding of four dimensions."""
    places: Any = np.array(rows, np.int32)
    return Tokens(n(len(rows), 4), places, **more)


def same(first: Any, second: Any) -> None:
    """Whether two trees are equal bit for bit."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


BASE = {"mlp.up": n(3, 10, 4), "mlp.down": n(3, 4, 7)}
BIAS = Replace(bias=n(6))
HADA = (n(6, 2), n(2, 4), n(6, 2, seed=1), n(2, 4, seed=1))
KRON = {"x": (n(2, 2),), "y": (n(3, 2),)}
LOOSE: dict[str, Update] = {
    "q": lora(),
    "k": lora(rank=3, scale=2.0),
    "a.v": lora(rank=4, scale=7 / 4),
}
# Updates by site, each in a form that PEFT's files can have.
FORMS: dict[str, dict[str, Update]] = {
    "lora": {"a.q": lora(), "b.q": lora()},
    "bfloat16": {"q": LoRA(n(2, 4, dtype=BFLOAT16), n(6, 2, dtype=BFLOAT16), 0.5)},
    "fan_in_fan_out": {"q": lora(transposed=None), "k": lora(transposed=None)},
    "bias": {"q": lora(bias=n(6)), "k": lora(bias=n(6, seed=1))},
    "dora": {"q": lora(magnitude=n(6)), "k": lora(magnitude=n(6, seed=1))},
    "conv": {"one": lora(6, 12, kernel=(3,)), "two": lora(6, 60, kernel=(3, 5)), "q": lora()},
    "conv dora": {"two": lora(6, 60, kernel=(3, 5), magnitude=n(6))},
    "embedding": {"embed": lora(9, 4, embedding=True), "q": lora()},
    "embedding dora": {"embed": lora(9, 4, embedding=True, magnitude=n(4))},
    "experts": {"mlp.up": experts(10, 4), "mlp.down": experts(4, 7)},
    "experts (in, out)": {"mlp.up": experts(4, 10, 3, True), "mlp.down": experts(7, 4, 2, True)},
    "a parameter of a layer": {"one.weight": lora(), "q": lora()},
    "attention": {"at.in_proj_weight": lora(12), "at.out_proj": lora(4), "q": lora(scale=1.0)},
    "attention of another rank": {
        "at.in_proj_weight": lora(12, rank=3, scale=2.0),
        "at.out_proj": lora(4, rank=3, scale=2.0),
        "q": lora(),
        "k": lora(),
        "o.out_proj": lora(),
    },
    "kasa": {"q": KaSA(n(2, 4), n(6, 2), n(2), 1.5), "k": KaSA(n(2, 4), n(6, 2), n(2), 1.5)},
    "trained biases": {"q": Together((BIAS, lora())), "norm": BIAS},
    "adalora, trained biases": {
        "q": Together((BIAS, AdaLoRA(n(2, 4), n(6, 2), n(2), 1.5 / (2 + 1e-5))))
    },
    "oft, trained biases": {"q": Together((BIAS, OFT(n(2, 1)))), "norm": BIAS},
    "modules saved whole": {"q": lora(), "head": Replace(n(9, 4), n(9)), "norm": Replace(n(4))},
    "rebase": {"embed": Together((Rebase(n(9, 4)), lora(9, 4, embedding=True))), "q": lora()},
    "rebase elsewhere": {"q": lora(), "head": Rebase(n(9, 4))},
    "tokens": {"q": lora(), "embed": tokens(3, 1), "x.embed": tokens(0, 2)},
    "tokens of a tied head": {"q": lora(), "embed": tokens(3), "lm_head": tokens(3, is_copy=True)},
    "all at once": {
        "embed": Together((Rebase(n(9, 4)), tokens(3, 1), lora(9, 4, embedding=True))),
        "q": Together((BIAS, lora())),
        "head": Replace(n(9, 4)),
    },
    "ranks and alphas": LOOSE,
    "adalora of two ranks": {
        "q": AdaLoRA(n(2, 4), n(6, 2), n(2), 1.5 / (3 + 1e-5)),
        "k": AdaLoRA(n(3, 4), n(6, 3), n(3), 1.5 / (3 + 1e-5)),
    },
    "loha": {"q": LoHa(*HADA, 1.5), "k": LoHa(*HADA, 2.0)},
    "lokr": {"q": LoKr(**KRON, scale=0.5), "k": LoKr(**KRON, scale=2 / 3)},
    "oft": {"q": OFT(n(2, 1)), "embed": OFT(n(2, 1), embedding=True)},
    "oft as many": {"q": OFT(n(2, 1)), "k": OFT(n(2, 3))},
    "oft, a bound": {"q": OFT(n(2, 1), terms=3, eps=1e-4)},
    "shira": {"q": SHiRA(n(10), np.arange(20, dtype=np.int32).reshape(2, 10) % 4, 1)},
    "norms alone": {"norm": Replace(n(4), n(4))},
    "tokens alone": {"embed": tokens(3, 1), "lm_head": tokens(3, 1, is_copy=True)},
    "biases added": {"q": Delta(bias=n(6))},
}


@pytest.mark.parametrize("name", FORMS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """The same updates are read at the same sites."""
    folder = jaxmix.export_peft(Adapter(FORMS[name]), tmp_path / "out", patterns=True)
    reloaded = jaxmix.load(folder, base=BASE if name.startswith("experts") else None)
    same(reloaded.updates, FORMS[name])
    config = json.loads((folder / CONFIG).read_text())
    assert config["peft_version"] and config["inference_mode"]


def test_patterns_hold_the_rare_values(tmp_path: Path) -> None:
    """The most frequent values are the defaults."""
    sites = {**LOOSE, "o": lora()}
    folder = jaxmix.export_peft(Adapter(sites), tmp_path / "out", patterns=True)
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 3)
    assert config["rank_pattern"] == {"^k": 3, r"^a\.v": 4}
    assert config["alpha_pattern"] == {"^k": 6, r"^a\.v": 7}


def test_first_parameter_is_wrapped_first(tmp_path: Path) -> None:
    """PEFT loads it so; the reader uses shapes and would not notice."""
    folder = jaxmix.export_peft(Adapter(FORMS["experts"]), tmp_path / "out")
    assert json.loads((folder / CONFIG).read_text())["target_parameters"] == ["mlp.up", "mlp.down"]
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        for path, size in (("mlp.base_layer", 4), ("mlp", 7)):
            key = f"base_model.model.{path}.lora_A.weight"
            assert file.get_slice(key).get_shape() == [6, size]


SCALED = "lora, bias, conv, embedding, experts, attention, ranks and alphas, loha, lokr"
SCALED += ", adalora of two ranks"


def size(update: Any) -> tuple[int, int]:
    """The shape, as a matrix, of the weight that an update fits."""
    if isinstance(update, ExpertLoRA):
        return update.a.shape[0], update.b.shape[1] * update.a.shape[2]
    return (6, 4) if isinstance(update, LoHa | LoKr) else (update.b.shape[0], update.a.shape[1])


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("strength", [0.5, -2.0, 0.0, np.float32(0.25), jnp.float32(0.5)])
@pytest.mark.parametrize("name", SCALED.split(", "))
def test_strength_is_multiplied_into_the_scale(name: str, strength: Any, tmp_path: Path) -> None:
    """The same weights and biases, although PEFT's AdaLoRA has no scale of 0 or less."""
    folder = jaxmix.export_peft(strength * Adapter(FORMS[name]), tmp_path / "out")
    reloaded = jax.tree.map(jnp.asarray, jaxmix.load(folder, base=BASE))
    assert reloaded.strength == 1.0 and set(reloaded.sites) == set(FORMS[name])
    for site, update in jax.tree.map(jnp.asarray, FORMS[name]).items():
        base, new = Base(None, size(update)), reloaded.updates[site]
        for kind in ("weight_map", "bias_map"):
            truth, output = (
                np.asarray(getattr(scaled, kind)(base, jnp.asarray(by)).shift.dense())
                for scaled, by in ((update, float(strength)), (new, 1.0))
            )
            np.testing.assert_allclose(output, truth, rtol=1e-5, atol=1e-6)


def test_strength_one_needs_no_scale(tmp_path: Path) -> None:
    """An array of 1 needs none either; DoRA has no scale that could take a strength."""
    updates = {"q": lora(magnitude=n(6)), "norm": BIAS}
    written = jnp.float32(1.0) * Adapter(updates)
    same(jaxmix.load(jaxmix.export_peft(written, tmp_path / "out")).updates, updates)


def test_bias_for_all_sites(tmp_path: Path) -> None:
    """PEFT's lora_bias applies to all sites, so sites without one get zeros."""
    sites = {"q": lora(bias=n(6)), "k": lora(9)}
    reloaded = jaxmix.load(jaxmix.export_peft(Adapter(sites), tmp_path / "out"))
    same(reloaded.updates, {**sites, "k": lora(9, bias=np.zeros(9, np.float32))})


def metadata(folder: Path) -> dict[str, str]:
    """The metadata in an adapter's file."""
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        return file.metadata()


def test_errors_are_kept(tmp_path: Path) -> None:
    """The errors that `to_lora` reports are stored next to the format."""
    plain = jaxmix.export_peft(Adapter(FORMS["lora"]), tmp_path / "plain")
    assert metadata(plain) == {"format": "pt"}
    folder = jaxmix.export_peft(Adapter(FORMS["lora"]), tmp_path / "out", errors={"a.q": 0.25})
    assert metadata(folder) == {"format": "pt", "errors": '{"a.q": 0.25}'}
    same(jaxmix.load(folder).updates, FORMS["lora"])


def test_mix_is_exported_as_folders_and_a_script(tmp_path: Path) -> None:
    """Folders in loading order, with runs of OFT reversed, and a script that names them."""
    parts = [
        Adapter(FORMS["oft"], name="a/b"),
        Adapter({"q": OFT(n(2, 1, seed=1))}, name=".."),
        0.5 * Adapter(FORMS["lora"], name="x.y"),
    ]
    folder = jaxmix.export_peft(jaxmix.mix(*parts), tmp_path / "out")
    names = ["01-adapter", "02-a-b", "03-x.y"]
    assert sorted(entry.name for entry in folder.iterdir()) == [*names, "load_in_peft.py"]
    for name, part in zip(names[:2], (parts[1], parts[0]), strict=True):
        same(jaxmix.load(folder / name).updates, part.updates)
    update: Any = jaxmix.load(folder / names[2]).updates["a.q"]
    assert update.scale == 0.75
    text = (folder / "load_in_peft.py").read_text()
    assert ast.get_docstring(ast.parse(text)) and f"FOLDERS = {names!r}" in text
    with pytest.raises(ImportError, match="peft"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "peft", None)
        exec(compile(text, "load_in_peft.py", "exec"), {"__file__": str(folder / "x.py")})


def test_existing_folder(tmp_path: Path) -> None:
    """It is kept without `force`; a folder that is not PEFT's is kept with `force` too."""
    out = tmp_path / "out"
    jaxmix.export_peft(Adapter(LOOSE), out, patterns=True)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out exists. Choose another folder, or use force=True to "
            "replace it once the new one is complete."
        ),
    ):
        jaxmix.export_peft(Adapter(FORMS["lora"]), out)
    same(jaxmix.load(out).updates, LOOSE)
    adapters = [Adapter(FORMS["lora"], name=name) for name in "ab"]
    for written, files in ((jaxmix.mix(*adapters), 3), (adapters[0], 2)):
        jaxmix.export_peft(written, out, force=True)
        assert len(list(out.iterdir())) == files
    same(jaxmix.load(out).updates, FORMS["lora"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/home exists and is not a checkpoint: it has none of "
            "adapter_config.json, load_in_peft.py. Choose another folder, or empty this one."
        ),
    ):
        jaxmix.export_peft(adapters[0], tmp_path / "home", force=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "home"}
