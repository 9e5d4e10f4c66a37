"""On new text of both domains, learned strengths give a lower loss than strengths of 1."""

import pytest

from .demo_fit import DOMAINS, trial


@pytest.mark.thorough
def test_learned_strengths_are_better_than_ones() -> None:
    """A Bible LoRA and a Jargon File LoHa are each too strong for the other's text."""
    demo = trial()
    fitted = demo.fitted("adapter", steps=8, length=128)
    ones, learned = (demo.losses(mixed, windows=8) for mixed in (demo.mix, fitted.mix))
    for domain in DOMAINS:
        assert learned[domain] < ones[domain] - 0.02, (domain, ones, learned)
    assert all(0.3 < strength < 0.95 for strength in fitted.strengths.values()), fitted.strengths
