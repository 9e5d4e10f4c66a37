"""The plan of a merge."""

from dataclasses import replace
from pathlib import Path

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.merging.merge_plan import AllowedChanges, plan_merge
from jaxmix.converters.merging.recipe import Recipe
from jaxmix.placement.layout import named

from ..bases import SIDE_FILES, Adapters, contents

NO_CHANGES = AllowedChanges(untie=False, dequantize=False, resize=False, new_head=None)


def test_plan_lists_what_is_written_and_writes_nothing(base: Path, adapters: Adapters) -> None:
    """A path and the checkpoint at it have the same plan, an adapter and a list of it too."""
    before, lora = contents(base), jaxmix.load(adapters["lora"])
    plan = plan_merge(base, lora, None, NO_CHANGES)
    again = plan_merge(read_checkpoint(base), [lora], None, NO_CHANGES)
    assert contents(base) == before
    assert list(plan.recipes) == list(again.recipes)
    assert set(plan.changed) == {
        f"model.layers.{i}.q_proj.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    assert set(plan.side_files) == {*SIDE_FILES, "config.json"}
    assert (plan.untied, plan.resized, plan.new_head) == ((), {}, None)
    assert list(plan.stamps) == [base / "model.safetensors"]


def test_empty_mix_changes_nothing(base: Path) -> None:
    """It is a copy of the base."""
    plan = plan_merge(base, [], None, NO_CHANGES)
    assert (plan.changed, plan.recipes, plan.checkpoint.texts) == ((), {}, {})


def test_changed_tensors_are_those_with_updates(base: Path) -> None:
    """A tensor that is only dequantized or resized is computed, but not changed by adapters."""
    plan = plan_merge(base, [], None, NO_CHANGES)
    norm = plan.checkpoint.tensors["model.norm.weight"]
    assert replace(plan, recipes={norm.name: Recipe(norm, ())}).changed == ()


def test_layouts_are_those_of_the_components(base: Path) -> None:
    """Of a single model, the one layout."""
    plan = plan_merge(base, [], "torch", NO_CHANGES)
    assert isinstance(plan.layout, type(named("torch"))) and plan.layouts == (plan.layout,)
    two = (named("torch"), named("flax"))
    assert replace(plan, layout=two).layouts == two
