"""Splits a mix by the components of a pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.adapter import Adapter
from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard, Stored
from jaxmix.converters.merging.components import plan_pipeline, split_mix
from jaxmix.converters.merging.merge_plan import AllowedChanges
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import LoRA
from jaxmix.mixing import mix

from ...messages import full_text

MODULES = {
    "transformer": ("blocks.0.to_q", "blocks.0.proj", "proj_out"),
    "transformer_2": ("blocks.0.to_q", "blocks.0.proj"),
    "text_encoder": ("encoder.q",),
}
NO_CHANGES = AllowedChanges(untie=False, dequantize=False, resize=False, new_head=None)
LORA: Any = LoRA(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), 0.5)


@pytest.fixture
def pipeline(tmp_path: Path) -> Checkpoint:
    """A pipeline of three models, without the bytes of their tensors."""
    components: dict[str, Checkpoint] = {}
    for name, modules in MODULES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.safetensors").touch()
        tensors = (
            Stored(f"{module}.weight", "F32", (4, 3), folder / "x.safetensors", 0, 48)
            for module in modules
        )
        components[name] = Checkpoint(folder, (Shard("x.safetensors", b"", tuple(tensors)),))
    shards = (
        shard.in_component(name) for name, part in components.items() for shard in part.shards
    )
    return Checkpoint(tmp_path, tuple(shards), components=components)


def of(name: str, *sites: str) -> Adapter:
    """An adapter at these sites."""
    return Adapter(dict.fromkeys(sites, LORA), name=name)


def test_parts_keep_their_order_and_strength(pipeline: Checkpoint) -> None:
    """A component that no site names is absent, and an adapter may have several."""
    first = 0.5 * of("first", "transformer_2.blocks.0.to_q", "text_encoder.encoder.q")
    second = -2.0 * of("second", "encoder.q", "text_encoder.encoder.q")
    mixed = mix(of("only", "proj_out"), first, 3.0 * of("last", "encoder.q"))
    mixes = split_mix(mixed, pipeline, names="")
    found = {
        name: [(part.name, float(part.strength), list(part.updates)) for part in each.parts]
        for name, each in mixes.items()
    }
    assert found == {
        "transformer": [("only", 1.0, ["proj_out"])],
        "transformer_2": [("first", 0.5, ["blocks.0.to_q"])],
        "text_encoder": [("first", 0.5, ["encoder.q"]), ("last", 3.0, ["encoder.q"])],
    }
    assert list(split_mix(mix(second), pipeline, names="")) == ["text_encoder"]


def test_bare_sites_belong_to_the_component_with_most_of_them(pipeline: Checkpoint) -> None:
    """The first transformer alone has all three; its names belong together."""
    adapter = of("style", "blocks.0.to_q", "blocks.0.proj", "proj_out")
    assert list(split_mix(mix(adapter), pipeline, names="")) == ["transformer"]


def test_doubtful_sites_of_all_adapters_are_listed(pipeline: Checkpoint) -> None:
    """A component that is absent, modules of none, and of several."""
    mixed = mix(
        of("a", "vae.x", "text_encoder_2.encoder.q"), of("b", "nothing.q"), of("c", "blocks.0.proj")
    )
    message = full_text(
        f"{pipeline.folder}: sites that do not belong to exactly one component of the pipeline:\n"
        "  a: text_encoder_2.encoder.q: no text_encoder_2 with weights in safetensors\n"
        "  a: vae.x: no component has such a module\n"
        "  b: nothing.q: no component has such a module\n"
        "  c: blocks.0.proj: transformer and transformer_2 have such modules\n"
        "Its components with weights are transformer, transformer_2, text_encoder. Name the one "
        "for which an adapter was trained: jaxmix.load(…, base=…, part='transformer')."
    )
    with pytest.raises(LayoutError, match=message):
        split_mix(mixed, pipeline, names="")


def test_plans_are_joined_under_the_components_names(pipeline: Checkpoint) -> None:
    """Tensors, sites and shards; in the files' order."""
    mixed = mix(of("a", "text_encoder.encoder.q"), of("b", "transformer.proj_out"))
    plan = plan_pipeline(pipeline, mixed, "torch", NO_CHANGES, "")
    changed = ("transformer.proj_out.weight", "text_encoder.encoder.q.weight")
    assert plan.changed == changed and plan.mixed is mixed
    assert [plan.recipes[name].shares[0].site for name in changed] == [
        "transformer.proj_out",
        "text_encoder.encoder.q",
    ]
    assert all(plan.recipes[name].tensor.name == name for name in changed)
    assert [shard.name for shard in plan.checkpoint.shards] == [
        f"{name}/x.safetensors" for name in MODULES
    ]
    assert len(plan.layouts) == len(plan.stamps) == 3


def test_misfits_of_all_components_are_one_error(pipeline: Checkpoint) -> None:
    """Each with the component's name, and of the first one's type."""
    wide: Any = LoRA(np.ones((2, 5), np.float32), np.ones((4, 2), np.float32), 0.5)
    sites = ("transformer.proj_out", "text_encoder.encoder.q")
    message = full_text(
        "\n".join(
            f"{component}: factors that do not fit the params:\n"
            f"  {module}: lora_A has shape (2, 5), expected (2, 3) from weight (4, 3)\n"
            "Was the adapter trained on another model, or on a base of another size?"
            for component, module in (("transformer", "proj_out"), ("text_encoder", "encoder.q"))
        )
    )
    with pytest.raises(ShapeError, match=message):
        plan_pipeline(pipeline, mix(Adapter(dict.fromkeys(sites, wide))), "torch", NO_CHANGES, "")
