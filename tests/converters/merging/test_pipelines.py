"""`merge_checkpoint` into pipelines and components of diffusers."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError, LayoutError, ShapeError

from ...messages import full_text
from ..pipelines import (
    assert_merged,
    attention,
    dotted,
    factors,
    kohya,
    merged_by_hand,
    peft_folder,
    save_pipeline,
    tensors_of,
)
from .conftest import Stop, breaking

PEFT = ("lora_A.weight", "lora_B.weight")


@pytest.mark.parametrize(
    ("kind", "components", "shards", "variant", "dtype"),
    [
        ("sd", ("unet", "text_encoder"), 2, "fp16", np.float16),
        ("sdxl", ("unet", "text_encoder", "text_encoder_2"), 1, "", np.float32),
        pytest.param(
            *("sdxl", ("unet", "text_encoder", "text_encoder_2"), 1, "fp16", np.float16),
            marks=pytest.mark.thorough,  # the rows around it have its variant and its components
        ),
        ("flux", ("transformer", "text_encoder"), 3, "", ml_dtypes.bfloat16),
    ],
)
def test_kohya_file_lands_in_every_component(
    kind: str, components: tuple[str, ...], shards: int, variant: str, dtype: Any, tmp_path: Path
) -> None:
    """Single files, shards and variants keep their names; other components are copied."""
    base = save_pipeline(tmp_path / "base", kind, shards=shards, variant=variant, dtype=dtype)
    tensors = tensors_of(base)
    lora = jaxmix.load(kohya(tmp_path / "x.safetensors", tensors, *components), base=base)
    merged = merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", *components)
    assert merged.verified is not None and merged.verified.ok and not merged.left_out
    assert {name.partition(".")[0] for name in merged.changed} == set(components)
    assert {name.partition("/")[0] for name in merged.shards} == {
        name.partition(".")[0] for name in tensors
    }
    assert verify_merge(base, lora, tmp_path / "out").ok
    assert not verify_merge(base, 0.5 * lora, tmp_path / "out").ok
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.one_of(2)
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(
    ("kind", "prefixes"),
    [
        ("sdxl", {"unet": "unet.", "text_encoder_2": "text_encoder_2."}),
        ("sdxl", {"unet": "diffusion_model.", "text_encoder": "text_encoder."}),
        ("sdxl", {"unet": "diffusion_model."}),
        ("sd", {"unet": ""}),
        ("flux", {"transformer": "unet."}),
        ("flux", {"transformer": "model.diffusion_model.", "text_encoder_2": "text_encoder_2."}),
        ("flux", {"text_encoder_2": "text_encoders.t5xxl.transformer."}),
        ("wan", {"transformer_2": "transformer_2."}),
        ("wan", {"transformer": "transformer.", "transformer_2": "transformer_2."}),
    ],
)
def test_dotted_file(kind: str, prefixes: dict[str, str], has_base: bool, tmp_path: Path) -> None:
    """Components by their own names and those of ComfyUI; without a prefix, by the modules."""
    base = save_pipeline(tmp_path / "base", kind)
    file = dotted(tmp_path / "x.safetensors", tensors_of(base), **prefixes)
    # Without a base, the sites of a file for one model have no component.
    has_base |= prefixes == {"transformer_2": "transformer_2."}
    lora = jaxmix.load(file, **({"base": base} if has_base else {}))
    merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", *prefixes, alpha=False)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("component", [None, "transformer", "transformer_2"])
def test_adapter_of_one_transformer(prefix: str, component: str | None, tmp_path: Path) -> None:
    """The adapter is for the first by default, as in diffusers; `part=` names the other."""
    base = save_pipeline(tmp_path / "base", "wan")
    tensors = tensors_of(base)
    file = dotted(tmp_path / "x.safetensors", tensors, transformer=prefix)
    lora = jaxmix.load(file, base=base, **({"part": component} if component else {}))
    merge_checkpoint(base, lora, tmp_path / "out")
    # The same factors fit both transformers.
    right = merged_by_hand(tensors, "transformer", alpha=False)
    merged = tensors_of(tmp_path / "out")
    chosen = component or "transformer"
    for module in attention(tensors, "transformer"):
        first, changed_name = f"transformer.{module}.weight", f"{chosen}.{module}.weight"
        effect = right[first] - tensors[first]
        assert np.allclose(
            merged[changed_name], tensors[changed_name] + effect, rtol=1e-5, atol=1e-5
        )
    changed = {name for name, tensor in tensors.items() if (merged[name] != tensor).any()}
    assert {name.partition(".")[0] for name in changed} == {chosen}


def test_kohya_file_for_the_second_transformer(tmp_path: Path) -> None:
    """Keys with underscores, too; a mix of one file for each transformer."""
    base = save_pipeline(tmp_path / "base", "wan")
    file = kohya(tmp_path / "x.safetensors", tensors_of(base), "transformer")
    parts = [jaxmix.load(file, part, base=base, part=part) for part in ("transformer_2", "unet")]
    assert all(site.startswith("transformer_2.blocks.0.") for site in parts[0].parts[0].sites)
    assert all(site.startswith("transformer.blocks.0.") for site in parts[1].parts[0].sites)
    merged = merge_checkpoint(base, parts, tmp_path / "out", verify=True)
    assert {name.partition(".")[0] for name in merged.changed} == {"transformer", "transformer_2"}


@pytest.mark.parametrize(
    ("kind", "component", "part"),
    [
        ("sdxl", "unet", None),
        ("sdxl", "text_encoder_2", "text_encoder_2"),
        ("flux", "text_encoder_2", None),
        ("wan", "transformer", "transformer"),
    ],
)
def test_peft_folder(kind: str, component: str, part: str | None, tmp_path: Path) -> None:
    """A PEFT folder lands in the component that has its modules, or that `part=` names."""
    base = save_pipeline(tmp_path / "base", kind)
    folder = peft_folder(tmp_path / "peft", tensors_of(base), component)
    lora = jaxmix.load(folder, base=base, **({"part": part} if part else {}))
    merge_checkpoint(base, lora, tmp_path / "out", verify=True)
    assert_merged(base, tmp_path / "out", component, alpha=False)


def test_sites_that_fit_several_components(tmp_path: Path) -> None:
    """Nothing is guessed: the error lists the sites, and how to choose."""
    base = save_pipeline(tmp_path / "base", "wan")
    lora = jaxmix.load(peft_folder(tmp_path / "peft", tensors_of(base), "transformer"))
    with pytest.raises(LayoutError) as refused:
        merge_checkpoint(base, lora, tmp_path / "out")
    text = str(refused.value)
    start = f"{base}: sites that do not belong to exactly one component of the pipeline:"
    line = "\n  peft: blocks.0.attn1.to_q: transformer and transformer_2 have such modules\n"
    assert text.startswith(f"{start}\n  peft: blocks.0.") and line in text
    assert text.endswith(
        "Its components with weights are transformer, transformer_2. Name the one for which an "
        "adapter was trained: jaxmix.load(…, base=…, part='transformer')."
    )


def test_sites_of_no_component(tmp_path: Path) -> None:
    """Absent components and unknown modules are listed together."""
    base = save_pipeline(tmp_path / "base", "sd")
    sdxl = tensors_of(save_pipeline(tmp_path / "sdxl", "sdxl"))
    file = dotted(tmp_path / "x.safetensors", sdxl, unet="unet.", text_encoder_2="text_encoder_2.")
    save_file(factors(sdxl, "vae", lambda n: f"nothing.{n}", PEFT), tmp_path / "y.safetensors")
    with pytest.raises(LayoutError) as refused:
        merge_checkpoint(base, jaxmix.load(file), tmp_path / "out")
    line = "\n  x: text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj: no text_encoder_2"
    assert f"{line} with weights in safetensors" in str(refused.value)
    names = (f"{side}.mid_block.attentions.0.to_" for side in ("decoder", "encoder"))
    lines = "".join(
        f"\n  y: nothing.{name}{end}: no component has such a module"
        for name in names
        for end in ("out.0", "q")
    )
    message = full_text(
        f"{base}: sites that do not belong to exactly one component of the pipeline:{lines}\n"
        "Its components with weights are text_encoder, unet. Name the one for which an adapter was "
        "trained: jaxmix.load(…, base=…, part='text_encoder')."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, jaxmix.load(tmp_path / "y.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_misfits_of_several_components(tmp_path: Path) -> None:
    """One error names each component whose weights do not fit."""
    base = save_pipeline(tmp_path / "base", "sdxl")
    tensors = tensors_of(base)
    file = dotted(tmp_path / "x.safetensors", tensors, unet="unet.", text_encoder="text_encoder.")
    tensors_cut = {name: x[:-1] if "lora_B" in name else x for name, x in load_file(file).items()}
    save_file(tensors_cut, file)
    with pytest.raises(ShapeError) as refused:
        merge_checkpoint(base, jaxmix.load(file, base=base), tmp_path / "out")
    lines = str(refused.value).splitlines()
    assert {line.partition(":")[0] for line in lines} >= {"unet", "text_encoder"}


def test_resuming(tmp_path: Path) -> None:
    """An interrupted merge into a pipeline continues; another mix is refused."""
    base = save_pipeline(tmp_path / "base", "sdxl", shards=2)
    file = kohya(tmp_path / "x.safetensors", tensors_of(base), "unet", "text_encoder")
    lora, out = jaxmix.load(file, base=base), tmp_path / "out"
    last = "diffusion_pytorch_model-00002-of-00002.safetensors"  # of the UNet
    with breaking(tmp_path / "out.partial", Stop(), last), pytest.raises(Stop):
        merge_checkpoint(base, lora, out)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/out.partial belongs to another merge, which can't be "
            "resumed. Different: their strengths. Merge with the same "
            "arguments as before, or use force=True without resume=True "
            "to start over."
        ),
    ):
        merge_checkpoint(base, 0.5 * lora, out, resume=True)
    interrupted = full_text(
        f"{tmp_path}/out.partial holds 9 of 8 shards of this merge, which was interrupted. Use "
        "resume=True to continue, force=True to start over, or delete the folder."
    )
    # How many shards were complete depends on the threads.
    with pytest.raises(CheckpointError, match=interrupted.replace(r"holds\ 9", r"holds\ [1-7]")):
        merge_checkpoint(base, lora, out)
    merged = merge_checkpoint(base, lora, out, resume=True, verify=True)
    assert 0 < merged.resumed < 8
    assert_merged(base, out, "unet", "text_encoder")
