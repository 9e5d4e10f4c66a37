"""Adapters exported as single files load as the same function."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open

import jaxmix
from jaxmix.converters.adapters.comfyui import export_comfyui
from jaxmix.converters.adapters.diffusers import export_diffusers
from jaxmix.converters.adapters.kohya import export_kohya
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError
from jaxmix.families import OFT, AdaLoRA, Delta, DiagOFT, LoHa, LoKr, LoRA, Normed, Together

from ....messages import full_text
from .test_goldens import golden

pytestmark = pytest.mark.usefixtures("no_compiling")

# Every exportable form, as its own library wrote it.
CASES = [
    *(
        ("lycoris", name)
        for name in (
            "locon locon-tucker loha loha-tucker lokr lokr-both lokr-tucker lokr-both-tucker "
            "lokr-full full norms dora-out dora-in loha-dora-in lokr-dora-out"
        ).split()
    ),
    ("kohya", "sdxl"),
    ("diffusers", "new-metadata"),
    ("diffusers", "new-dora"),
    ("diffusers", "new-bias"),
]


def drawn(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Returns random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def composed(base: dict[str, np.ndarray], adapter: Any) -> dict[str, np.ndarray]:
    """Returns the base with an adapter composed into it, in float64."""
    with jax.enable_x64(True):
        out = jaxmix.compose(base, [adapter])
        return {name: np.asarray(leaf) for name, leaf in out.items()}


# What diffusers loads; of a norm it has only that by output.
IN_DIFFUSERS = ("locon", "locon-tucker", "dora-out", "sdxl", "new-metadata", "new-dora", "new-bias")


@pytest.mark.one_of(2)
@pytest.mark.parametrize("kind", ["kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize(("writer", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_exported_file_loads_with_the_same_effect(
    writer: str, name: str, kind: str, tmp_path: Path
) -> None:
    """The composed weights are the same, up to the float32 epsilon of LyCORIS's norm."""
    archive = golden(writer)
    base = archive.tensors("base.safetensors")
    path = archive.unpack(tmp_path) / f"{name}.safetensors"
    adapter = jaxmix.load(path, base=base)
    if any(isinstance(update, Delta) for update in adapter.updates.values()):
        adapter = 0.5 * adapter
    file = tmp_path / "again.safetensors"
    if kind == "kohya":
        export_kohya(adapter, file)
    elif kind == "comfyui":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of DoRA's norm, which ComfyUI computes otherwise
            export_comfyui(adapter, file)
    elif name in IN_DIFFUSERS:
        export_diffusers(adapter, file, prefix=None if writer != "lycoris" else "unet")
    else:
        kinds = {site: update.family for site, update in adapter.updates.items()}
        lines = "".join(f"\n  {site}: {x}" for site, x in kinds.items() if x != "LoRA")
        message = (
            f"{adapter.name}: files for diffusers hold LoRA and DoRA only, and this adapter has:"
            f"{lines}\nWrite it for ComfyUI or kohya's scripts, which read more kinds. Or convert "
            "it to a LoRA: jaxmix.to_lora(adapter, params)."
        )
        with pytest.raises(UnsupportedError, match=full_text(message)):
            export_diffusers(adapter, file, prefix="unet")
        return
    reloaded = jaxmix.load(file, base=base)
    assert set(reloaded.sites) == set(adapter.sites)
    truth, output = composed(base, adapter), composed(base, reloaded)
    for key in base:
        np.testing.assert_allclose(output[key], truth[key], rtol=1e-6, atol=1e-12)
        if "dora" not in name:
            np.testing.assert_allclose(output[key], truth[key], rtol=1e-12, atol=1e-12)


A, B = drawn(2, 4), drawn(6, 2, seed=1)
PAIRS = {"w1": drawn(2, 2), "w2": drawn(3, 2)}


@pytest.mark.parametrize("kind", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("strength", [0.5, 0.0, -2.0])
def test_strength_is_written_into_the_factors(kind: str, strength: float, tmp_path: Path) -> None:
    """Strength 0 is written as a zero factor, because an alpha of 0 means the rank."""
    updates: dict[str, Any] = {
        "a": LoRA(A, B, 1.5),
        "b": LoRA(A, B, 1.5, bias=drawn(6)),
        "c": LoHa(B, A, B, A, 0.7),
        "d": LoKr((PAIRS["w1"],), (PAIRS["w2"],), 0.7),
        "e": LoKr((PAIRS["w1"],), (drawn(3, 1), drawn(1, 2)), 0.7),
        "f": Delta(drawn(6, 4), drawn(6)),
        "g": Together((LoRA(A, B, 1.0), Delta(bias=drawn(6)))),
        "h": DiagOFT(drawn(3, 2, 2), drawn(6)),
        "i": DiagOFT(drawn(3, 2, 2), bound=0.5),
    }
    if kind == "diffusers":
        updates = {"a": updates["b"], "b": LoRA(A, B, 2.0, bias=drawn(6)), "g": updates["g"]}
    if kind == "comfyui":
        del updates["h"]
    base = {
        f"{site}.{leaf}": drawn(6, 4) if leaf == "weight" else drawn(6)
        for site in updates
        for leaf in ("weight", "bias")
    }
    adapter = strength * jaxmix.Adapter(updates)
    file = tmp_path / "x.safetensors"
    if kind == "kohya":
        export_kohya(adapter, file, prefix="lycoris")
    elif kind == "comfyui":
        export_comfyui(adapter, file)
    else:
        export_diffusers(adapter, file, prefix="transformer")
    truth, output = composed(base, adapter), composed(base, jaxmix.load(file, base=base))
    for key in base:
        np.testing.assert_allclose(output[key], truth[key], rtol=1e-12, atol=1e-12)


def test_prefixes_of_a_pipeline(tmp_path):
    """Each part has its prefix; the first of two text encoders is numbered."""
    lora = LoRA(A, B, 1.0)
    names = ["unet.mid.to_q", "text_encoder.q_proj", "text_encoder_2.q_proj"]
    file = export_kohya(jaxmix.Adapter(dict.fromkeys(names, lora)), tmp_path / "x.safetensors")
    with safe_open(file, "numpy") as opened:
        prefixes = sorted({key.split(".")[0] for key in opened.keys()})
        assert opened.metadata() == {"format": "pt", "ss_network_module": "networks.lora"}
    assert prefixes == ["lora_te1_q_proj", "lora_te2_q_proj", "lora_unet_mid_to_q"]
    file = export_kohya(jaxmix.Adapter(dict.fromkeys(names[:2], lora)), file, force=True)
    with safe_open(file, "numpy") as opened:
        assert sorted({k.split(".")[0] for k in opened.keys()})[0] == "lora_te_q_proj"
    file = export_kohya(jaxmix.Adapter({"mid.to_q": lora}), file, force=True)
    assert jaxmix.load(file, base=["mid.to_q"]).sites == ("mid.to_q",)


def test_dtypes_are_kept(tmp_path):
    """The factors' dtypes are kept."""
    import ml_dtypes

    lora = LoRA(A.astype(ml_dtypes.bfloat16), B.astype(ml_dtypes.bfloat16), 0.5)
    file = export_diffusers(jaxmix.Adapter({"x": lora}), tmp_path / "x.safetensors", prefix="unet")
    reloaded = jaxmix.load(file).updates["x"]
    assert reloaded.a.dtype == reloaded.b.dtype == ml_dtypes.bfloat16
    assert reloaded.a.tobytes() == lora.a.tobytes() and reloaded.scale == 1.0
    assert reloaded.b.tobytes() == (lora.b / 2).astype(lora.b.dtype).tobytes()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (OFT(drawn(2, 1)), "x: OFT, which has no form in LyCORIS's names"),
        (AdaLoRA(A, B, drawn(2), 1.0), "x: AdaLoRA, which has no form"),
        (
            DiagOFT(drawn(2, 2, 2), side="in"),
            "x: a rotation that LyCORIS does not have: of inputs, or PEFT's",
        ),
        (LoRA(A, B, 1.0, transposed=True), "x: a layer that PyTorch stores as (in, out)"),
        (
            LoRA(A, B, 1.0, magnitude=drawn(4), embedding=True),
            "x: an embedding's DoRA, whose norm differs",
        ),
        (
            Normed(LoRA(A, B, 1.0, magnitude=drawn(6)), drawn(6)),
            "x: a norm over a DoRA",
        ),
        (
            LoKr((drawn(2, 2),), (drawn(3, 2, 3),), 1.0),
            "x: PEFT's LoKr of a Conv1d, which scrambles",
        ),
        (
            LoKr((drawn(2, 1), drawn(1, 2)), (drawn(3, 2), drawn(2, 2)), 1.0),
            "x: a LoKr with two ranks, for which a file has only one alpha",
        ),
    ],
)
def test_unsupported_updates_are_refused(update, message, tmp_path):
    """The error states the reason and the remedy."""
    for export in (export_kohya, export_comfyui):
        with pytest.raises(UnsupportedError) as error:
            export(jaxmix.Adapter({"x": update}), tmp_path / "x.safetensors")
        assert message in str(error.value)
        assert str(error.value).endswith("jaxmix.to_lora(adapter, params).")


def test_strength_of_a_norm_is_refused(tmp_path):
    """The format cannot store a strength of DoRA or a norm."""
    for update, description in (
        (LoRA(A, B, 1.0, magnitude=drawn(6)), "DoRA"),
        (Normed(LoRA(A, B, 1.0), drawn(6)), "a norm"),
    ):
        message = (
            "adapter: updates for which the format has no form:\n"
            f"  x: {description} at strength 0.5, which the file can't express\n"
            "Convert them to a LoRA: jaxmix.to_lora(adapter, params)."
        )
        with pytest.raises(UnsupportedError, match=full_text(message)):
            export_kohya(0.5 * jaxmix.Adapter({"x": update}), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("points", "axes"), [(1, ()), (3, (1,)), (9, (1, 1)), (27, (1, 1, 1))], ids=str
)
def test_norm_per_input_has_the_axes_of_its_kernel(
    points: int, axes: tuple[int, ...], tmp_path: Path
) -> None:
    """A LoHa without a core has a flat kernel; its number of points determines the axes."""
    a, b = drawn(2, 4 * points), drawn(6, 2, seed=1)
    update = Normed(LoHa(b1=b, a1=a, b2=b, a2=a, scale=1.0), np.ones(4), 1e-7, axis="in")
    file = export_kohya(jaxmix.Adapter({"x": update}), tmp_path / "x.safetensors")
    with safe_open(file, "np") as opened:
        assert opened.get_tensor("lora_unet_x.dora_scale").shape == (1, 4, *axes)
    reloaded: Any = jaxmix.load(file, base={"x.weight": np.ones((6, 4 * points))}).updates["x"]
    assert reloaded.axis == "in"
    np.testing.assert_array_equal(reloaded.magnitude, update.magnitude)


def test_invalid_exports_are_refused(tmp_path):
    """Refuses a mix, two sites of one key, existing files, wrong suffixes and missing folders."""
    adapter, path = jaxmix.Adapter({"x": LoRA(A, B, 1.0)}), tmp_path / "x.safetensors"
    mixed: Any = jaxmix.mix(adapter, adapter.renamed("b"))
    with pytest.raises(
        AdapterError,
        match=full_text(
            "got a Mix, expected one adapter. Convert a mix to one: jaxmix.to_lora(mix, params)."
        ),
    ):
        export_kohya(mixed, path)
    ambiguous = jaxmix.Adapter(dict.fromkeys(["a.b_c", "a_b.c"], LoRA(A, B, 1.0)))
    with pytest.raises(
        AdapterError,
        match=full_text(
            "adapter: sites that have the same name with underscores for "
            "dots:\n"
            "  lora_unet_a_b_c: a.b_c and a_b.c\n"
            "Export them with dots: jaxmix.converters.comfyui."
        ),
    ):
        export_kohya(ambiguous, path)
    export_kohya(adapter, path)
    message = f"{path} exists. Choose another name, or replace it: force=True."
    with pytest.raises(CheckpointError, match=full_text(message)):
        export_kohya(adapter, path)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/x.bin is not a valid name for the file, expected one "
            "that ends in .safetensors."
        ),
    ):
        export_kohya(adapter, tmp_path / "x.bin")
    path = tmp_path / "none" / "x.safetensors"
    with pytest.raises(CheckpointError, match=rf"\A{re.escape(str(path))} can't be written: .+\Z"):
        export_kohya(adapter, path)
    both = {"x": LoRA(A, B, 1.0), "y": LoRA(A, B, 1.0, magnitude=drawn(6))}
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "y: some modules of one model have DoRA's norm, or a bias, "
            "and others do not; diffusers has one flag for all. Export "
            "them as separate files."
        ),
    ):
        export_diffusers(jaxmix.Adapter(both), path, force=True)


def test_file_needs_no_metadata(tmp_path: Path) -> None:
    """ComfyUI and diffusers before 0.34 ignore metadata, so all ranks are equal and scales 1."""
    updates = {
        "to_q": LoRA(drawn(2, 4), drawn(6, 2), 0.7, bias=drawn(6)),
        "to_k": LoRA(drawn(3, 4), drawn(5, 3), 2.0, bias=drawn(5)),
    }
    adapter = jaxmix.Adapter(updates, 0.6)
    path = export_diffusers(adapter, tmp_path / "x.safetensors", prefix="unet")
    with safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (3, 3)
    assert (metadata["unet.rank_pattern"], metadata["unet.alpha_pattern"]) == ({}, {})
    for site, update in updates.items():
        a, b, bias = (
            tensors[f"unet.{site}.{name}"]
            for name in ("lora_A.weight", "lora_B.weight", "lora_B.bias")
        )
        assert a.shape[0] == 3
        factor = 0.6 * float(update.scale)
        np.testing.assert_allclose(b @ a, factor * (update.b @ update.a), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bias, factor * np.asarray(update.bias), rtol=1e-6)
    patterned = export_diffusers(adapter, tmp_path / "y.safetensors", patterns=True)
    reloaded = jaxmix.load(patterned, format="diffusers").updates
    assert [reloaded[site].a.shape[0] for site in updates] == [2, 3]  # pyright: ignore[reportAttributeAccessIssue]
    restored: Any = reloaded["to_q"]
    np.testing.assert_array_equal(restored.b, updates["to_q"].b)
