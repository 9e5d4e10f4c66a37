"""The files whose tests take the most CPU time: they start first, so workers end together."""

from pathlib import Path

import pytest

__all__ = ["LONGEST", "start_first"]

# Longest first; the last takes about seven seconds.
LONGEST = (
    "house/test_pages.py",
    "laws/test_every_family.py",
    "laws/test_every_family_jax.py",
    "parity/test_export.py",
    "test_demo.py",
    "bank/test_bank.py",
    "families/test_contract.py",
    "operators/test_fold.py",
    "apply/test_accelerated.py",
    "unmerged/test_chains.py",
    "combining/test_combining.py",
    "goldens/test_goldens.py",
    "parity/test_stacks.py",
    "placement/test_trees.py",
    "unmerged/test_uses.py",
    "training/test_survey.py",
    "parity/test_peft_checklist.py",
    "converters/layouts/test_images.py",
    "training/test_gradients_peft.py",
    "house/test_doctests.py",
    "training/test_init_kinds.py",
    "operators/test_pytrees.py",
    "house/test_packaging.py",
    "placement/test_fused.py",
    "laws/test_traces.py",
    "parity/test_transformers.py",
    "operators/test_slices.py",
    "converters/layouts/test_rules.py",
    "operators/test_alone.py",
    "converters/layouts/test_libraries.py",
    "laws/test_one_model.py",
    "converters/adapters/peft/test_integers.py",
    "devices/test_running.py",
    "converters/adapters/mixfile/test_round_trip.py",
    "parity/test_forms.py",
    "converters/merging/test_processes.py",
    "families/test_rows.py",
    "laws/test_every_family_numbers.py",
    "parity/test_combine.py",
    "converters/merging/test_memory.py",
    "bank/test_backends.py",
    "models/test_generation.py",
    "test_affine.py",
    "converters/names/test_images.py",
    "converters/merging/test_merge_peft.py",
)


def start_first(items: list[pytest.Item]) -> None:
    """Sorts tests in place: those of the longest files first, the others in their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
