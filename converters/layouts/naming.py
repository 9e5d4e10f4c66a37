r"""What tables have in common: how Hugging Face's decoders call their modules.

Multimodal models have ``language_model`` in some place above the layers.
"""

from collections.abc import Iterable
from dataclasses import replace

from jaxmix.placement.layout import Rule

__all__ = ["EMBEDDING", "HEAD", "KERNEL", "LAYER", "NORM", "below"]

_ABOVE = r"(?:model\.|language_model\.)*"
EMBEDDING = rf"{_ABOVE}embed_tokens"
NORM = rf"{_ABOVE}norm"
HEAD = r"(?:language_model\.)?lm_head"
LAYER = rf"{_ABOVE}layers\.(\d+)\."
# A Flax kernel of a linear layer.
KERNEL = "i o -> o i"


def below(rules: Iterable[Rule], *prefixes: str) -> tuple[Rule, ...]:
    """Rules for trees whose leaves are below one of some names.

    Args:
        rules: the rules.
        prefixes: the names, with a dot at the end; "" for nothing above.

    Returns:
        Each rule once for each of them.

    Example:
        >>> [rule.leaf for rule in below([Rule("a", "w")], "", "params.")]
        ['w', 'params.w']
    """
    rules = tuple(rules)
    return tuple(
        replace(rule, leaf=f"{prefix}{rule.leaf}") for prefix in prefixes for rule in rules
    )
