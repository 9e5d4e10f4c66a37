"""Variants of a model's weights, such as fp16: which one is read, and under which name written."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.sharded_reading import load_params
from jaxmix.converters.cli.opening import opening
from jaxmix.converters.files import hub
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError
from jaxmix.models.main_file import main_file
from jaxmix.weight_files import variants

from ..cli.running import Captured, main, run_json
from ..pipelines import attention, kohya, save_pipeline, save_weights

PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pipeline whose U-Net has other numbers in fp16 (one file) and in bf16 (shards)."""
    folder = save_pipeline(tmp_path / "base", "sd")
    tensors = load_file(folder / "unet" / PLAIN)
    save_weights(folder / "unet", {n: x + 1 for n, x in tensors.items()}, PLAIN, variant="fp16")
    twos = {n: x + 2 for n, x in tensors.items()}
    save_weights(folder / "unet", twos, PLAIN, variant="bf16", shards=2)
    return folder


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> Path:
    """A file of kohya's scripts for the U-Net."""
    tensors = {f"unet.{n}": x for n, x in load_file(base / "unet" / PLAIN).items()}
    return kohya(tmp_path / "x.safetensors", tensors, "unet")


def first(base: Path) -> np.ndarray:
    """A tensor of the U-Net without a variant."""
    return load_file(base / "unet" / PLAIN)[name(base)]


def name(base: Path) -> str:
    """The name of this tensor."""
    return sorted(load_file(base / "unet" / PLAIN))[0]


@pytest.mark.parametrize(("variant", "added"), [(None, 0), ("fp16", 1), ("bf16", 2)])
def test_chosen_variant_is_read(base: Path, variant: str | None, added: int) -> None:
    """The plain files by default; of a pipeline, components without the variant are plain."""
    expected = first(base) + added
    component = read_checkpoint(base / "unet", variant)
    assert np.array_equal(component.tensors[name(base)].read(), expected)
    pipeline = read_checkpoint(base, variant)
    assert np.array_equal(pipeline.tensors[f"unet.{name(base)}"].read(), expected)
    assert [s.name for s in pipeline.components["text_encoder"].shards] == ["model.safetensors"]
    assert np.array_equal(load_params(base / "unet", variant=variant)[name(base)], expected)


@pytest.mark.parametrize(
    ("variant", "files"),
    [
        ("fp16", {"diffusion_pytorch_model.fp16.safetensors"}),
        (
            "bf16",
            {
                "diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
                "diffusion_pytorch_model.bf16-00002-of-00002.safetensors",
                "diffusion_pytorch_model.safetensors.index.bf16.json",
            },
        ),
    ],
)
def test_output_has_the_names_of_the_variant(
    variant: str, files: set[str], base: Path, lora: Path, tmp_path: Path
) -> None:
    """The change is that of the plain weights, which are left out."""
    adapter = jaxmix.load(lora, base=base, variant=variant)
    plain = merge_checkpoint(base, adapter, tmp_path / "plain")
    merge = merge_checkpoint(base, adapter, tmp_path / "out", variant=variant, verify=True)
    assert {p.name for p in (tmp_path / "out/unet").iterdir()} == {*files, "config.json"}
    assert f"unet/{PLAIN}: weights that are still the base's" in merge.left_out
    assert set(merge.changed) == set(plain.changed)
    written = {
        f"unet.{n}": x
        for file in (tmp_path / "out/unet").glob("*.safetensors")
        for n, x in load_file(file).items()
    }
    expected = load_file(tmp_path / "plain/unet" / PLAIN)
    added = {"fp16": 1, "bf16": 2}[variant]
    for site in attention(written, "unet"):
        leaf = f"{site}.weight"
        np.testing.assert_allclose(written[f"unet.{leaf}"], expected[leaf] + added, atol=1e-5)
    assert verify_merge(base, adapter, tmp_path / "out", variant=variant).ok
    path = f'"{tmp_path / "out"}", variant="{variant}"'
    assert opening(tmp_path / "out") == f"diffusers.DiffusionPipeline.from_pretrained({path})"
    assert opening(tmp_path / "plain") == (
        f'diffusers.DiffusionPipeline.from_pretrained("{tmp_path / "plain"}")'
    )


def test_merge_on_the_command_line(
    base: Path, lora: Path, tmp_path: Path, capsys: Captured
) -> None:
    """`--variant` chooses the base's weights."""
    arguments = ["merge", base, "-a", lora, "--variant", "fp16", "-o", tmp_path / "out"]
    assert run_json(capsys, *arguments)["shards"].count(
        "unet/diffusion_pytorch_model.fp16.safetensors"
    )


def test_other_commands(base: Path, lora: Path, tmp_path: Path, capsys: Captured) -> None:
    """Each reads the variant that is given, and refuses one that is absent."""
    out = ["-o", tmp_path / "out.safetensors"]
    for words in (
        ["inspect", lora, "--measure"],
        ["convert", lora, "--to", "kohya", "--rank", "2", *out],
        ["export", "-a", lora, "--rank", "2", "-o", tmp_path / "folder"],
        ["combine", "-a", lora, "-a", lora, "-m", "linear", "-o", tmp_path / "both"],
    ):
        assert main(*words, "--base", base, "--variant", "fp32") == 1
        assert "no component has weights of the variant 'fp32'" in capsys.readouterr().err
        assert main(*words, "--base", base, "--variant", "fp16") == 0
        capsys.readouterr()


def test_absent_variant_lists_those_that_exist(base: Path) -> None:
    """The error lists those of a folder, or of each component of a pipeline."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(base / "unet", "fp32")
    assert str(caught.value) == (
        f"{base / 'unet'} has no weights of the variant 'fp32', found the files without a "
        "variant, 'fp16', 'bf16'. Choose one of them."
    )
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(base, "fp32")
    assert (
        f"{base}: no component has weights of the variant 'fp32', found:\n"
        "  text_encoder: the files without a variant\n"
        "  unet: the files without a variant, 'fp16', 'bf16'\n"
        "Choose one of them, or leave out variant='fp32'."
    ) in str(caught.value)


def test_several_variants_and_no_plain_files(base: Path) -> None:
    """The user has to choose one."""
    (base / "unet" / PLAIN).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(base)
    assert (
        "has several variants of its weights: "
        "diffusion_pytorch_model.fp16.safetensors, "
        "diffusion_pytorch_model.safetensors.index.bf16.json. Choose one (variant='…'), or keep "
        "only one of them in the folder."
    ) in str(caught.value)
    assert list(variants(base / "unet")) == ["fp16", "bf16"]
    assert main_file(base / "unet", "fp16").name == "diffusion_pytorch_model.fp16.safetensors"


def test_variant_needs_a_folder(base: Path, lora: Path) -> None:
    """A file and params have no variants."""
    file = base / "unet" / PLAIN
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file, "fp16")
    assert str(caught.value) == (
        f"variant='fp16' chooses among the files of a folder, and {file} is not a folder. Leave it "
        "out."
    )
    with pytest.raises(CheckpointError) as caught:
        jaxmix.load(lora, base=load_file(file), variant="fp16")
    assert str(caught.value) == (
        "variant='fp16' chooses among the files of a folder, which is not given as base=…. "
        "Leave it out."
    )


@pytest.mark.parametrize("variant", [None, "fp16", "bf16"])
def test_download_has_the_chosen_variant(
    variant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of fp16 are only downloaded when they are read."""
    import huggingface_hub

    patterns: list[list[str]] = []

    def download(hub_id: str, *, ignore_patterns: list[str], **_: object) -> str:
        patterns.append(ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.base_folder("owner/name", variant) == tmp_path
    assert ("*.fp16.*" in patterns[0]) == (variant != "fp16")
