"""Learned strengths are better than ones, on text of both domains that nobody was trained on."""

import pytest

from .demo_fit import DOMAINS, trial


@pytest.mark.thorough
def test_learned_strengths_are_better_than_ones() -> None:
    """A LoRA for the Bible and a LoHa for the Jargon File, each too strong for the other's text."""
    demo = trial()
    found = demo.fitted("adapter", steps=8, length=128)
    ones, learned = (demo.losses(mixed, windows=8) for mixed in (demo.mix, found.mix))
    for domain in DOMAINS:
        assert learned[domain] < ones[domain] - 0.02, (domain, ones, learned)
    assert all(0.3 < strength < 0.95 for strength in found.strengths.values()), found.strengths
