"""The files whose tests take the most CPU time: they start first, so that no worker ends alone."""

from pathlib import Path

import pytest

__all__ = ["LONGEST", "start_first"]

# Longest first; the last takes about seven seconds.
LONGEST = (
    "house/test_pages.py",
    "laws/test_every_family.py",
    "parity/test_export.py",
    "combining/test_combine.py",
    "training/test_init_kinds.py",
    "parity/test_forms.py",
    "laws/test_every_family_numbers.py",
    "bank/test_bank.py",
    "goldens/test_goldens.py",
    "families/test_contract.py",
    "laws/test_every_family_jax.py",
    "unmerged/test_chains.py",
    "parity/test_combine.py",
    "placement/test_trees.py",
    "unmerged/test_transforms.py",
    "unmerged/test_uses.py",
    "converters/adapters/mixfile/test_round_trip.py",
    "training/test_init_trees.py",
    "laws/test_one_model.py",
    "training/test_gradients_peft.py",
    "laws/test_traces.py",
    "parity/test_drawn.py",
    "converters/adapters/peft/test_live_orientation.py",
    "converters/merging/test_processes.py",
    "combining/test_formulas.py",
    "laws/test_shape.py",
    "converters/merging/test_merge_peft.py",
    "converters/merging/test_memory.py",
    "devices/test_processes.py",
    "training/test_init_peft.py",
    "converters/adapters/formats/test_qwix_bare.py",
    "unmerged/test_attaching.py",
    "converters/cli/test_merge.py",
    "converters/merging/test_killed.py",
    "training/test_gradients.py",
    "combining/test_low_rank.py",
)


def start_first(items: list[pytest.Item]) -> None:
    """Sorts tests in place: those of the longest files first, all others in their order."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
