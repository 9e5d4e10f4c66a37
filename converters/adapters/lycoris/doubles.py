"""Detects modules that a file contains twice, under two names."""

from collections.abc import Sequence

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors

__all__ = ["is_double"]

_UP, _DOWN = "lora_up.weight", "lora_down.weight"


def is_double(tensors: SiteTensors, others: Sequence[SiteTensors]) -> bool:
    """Whether a module's tensors equal those of another module, or of its parts.

    Args:
        tensors: The tensors of the module.
        others: The tensors of one other module, or of the modules that are its rows, in order.

    Example:
        >>> down, up = np.ones((1, 3)), np.arange(4.0).reshape(4, 1)
        >>> halves = [{_DOWN: down, _UP: half} for half in (up[:2], up[2:])]
        >>> is_double({_DOWN: down, _UP: up, "alpha": np.array(1.0)}, halves)
        True
    """
    if len(others) == 1:
        return _are_equal(_with_alpha(tensors), _with_alpha(others[0]))
    if not all({_UP, _DOWN} <= set(each) <= {_UP, _DOWN, "alpha"} for each in (tensors, *others)):
        return False
    joined_up = np.concatenate([each[_UP] for each in others])
    return all(
        _are_equal(_with_alpha(tensors), _with_alpha({**each, _UP: joined_up})) for each in others
    )


def _with_alpha(tensors: SiteTensors) -> SiteTensors:
    """The tensors with the alpha of a LoRA stated: the rank if the file has none."""
    if _DOWN not in tensors or "alpha" in tensors:
        return tensors
    return {**tensors, "alpha": np.asarray(float(tensors[_DOWN].shape[0]))}


def _are_equal(left: SiteTensors, right: SiteTensors) -> bool:
    if left.keys() != right.keys():
        return False
    return all(np.array_equal(left[name], right[name]) for name in left)
