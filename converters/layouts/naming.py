r"""Hugging Face's names of decoder modules, shared by all layouts.

Multimodal models have ``language_model`` somewhere above the layers.
"""

from collections.abc import Iterable
from dataclasses import replace

from jaxmix.placement.layout import Rule

__all__ = ["EMBEDDING", "HEAD", "KERNEL", "LAYER", "NORM", "with_prefixes"]

_ABOVE = r"(?:model\.|language_model\.)*"
EMBEDDING = rf"{_ABOVE}embed_tokens"
NORM = rf"{_ABOVE}norm"
HEAD = r"(?:language_model\.)?lm_head"
LAYER = rf"{_ABOVE}layers\.(\d+)\."
# The axes of a linear layer's Flax kernel.
KERNEL = "i o -> o i"


def with_prefixes(rules: Iterable[Rule], *prefixes: str) -> tuple[Rule, ...]:
    """Repeats rules for trees whose leaves have one of several prefixes.

    Args:
        rules: The rules.
        prefixes: The prefixes, each ending in a dot; "" for no prefix.

    Returns:
        Each rule with each prefix.

    Example:
        >>> [rule.leaf for rule in with_prefixes([Rule("a", "w")], "", "params.")]
        ['w', 'params.w']
    """
    rules = tuple(rules)
    return tuple(
        replace(rule, leaf=f"{prefix}{rule.leaf}") for prefix in prefixes for rule in rules
    )
