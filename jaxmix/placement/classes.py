"""The axes of a weight by its module's class in Flax NNX or Equinox, without importing them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import jax

__all__ = ["Kind", "Known", "axes_by_class", "owners"]

Kind = Literal["linear", "convolution", "embedding", "norm", "recurrent", "other", "unclear"]

_NORMS = ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "InstanceNorm", "WeightNorm")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys((*_NORMS, "SpectralNorm"), "norm"),
    **dict.fromkeys(("Conv", "ConvTranspose"), "convolution"),
    **dict.fromkeys(("Embed", "Embedding"), "embedding"),
}
_CELLS = ("RNNCellBase", "GRUCell", "LSTMCell")


@dataclass(frozen=True)
class Known:
    """A leaf's axes, as its module's class defines them.

    Args:
        kind: The kind of the module.
        stack: The axes along which copies of the module are stacked.
        rows: The axes of the outputs.
        cols: The axes of the inputs.
    """

    kind: Kind
    stack: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()


def owners(root: Any, path: Sequence[Any]) -> list[Any]:
    """Returns the objects on the path from a tree to one of its leaves, outermost first.

    Args:
        root: The tree.
        path: The leaf's path of JAX keys.

    Returns:
        Each object that holds the leaf. The list ends at a key that can't be followed.

    Example:
        >>> tree = {"a": [1.0]}
        >>> owners(tree, jax.tree_util.tree_flatten_with_path(tree)[0][0][0])
        [{'a': [1.0]}, [1.0]]
    """
    found = [root]
    for key in path[:-1]:
        try:
            if isinstance(key, jax.tree_util.GetAttrKey):
                found.append(getattr(found[-1], key.name))
            elif isinstance(key, jax.tree_util.SequenceKey):
                found.append(found[-1][key.idx])
            elif isinstance(key, jax.tree_util.DictKey):
                found.append(found[-1][key.key])
            else:
                return found
        except (AttributeError, KeyError, IndexError, TypeError):
            return found
    return found


def axes_by_class(above: Sequence[Any], leaf: str, shape: tuple[int, ...]) -> Known | None:
    """Returns a leaf's axes by its module's class; None if the class is unknown.

    Args:
        above: The objects on the path to the leaf, as `owners` lists them.
        leaf: The leaf's own name, such as ``kernel``.
        shape: The leaf's shape.

    Returns:
        The kind of the module and the axes of its weight.
    """
    modules = [module for module in above if _is_module(module)]
    if not modules:
        return None
    owner = modules[-1]
    names = {cls.__name__ for cls in type(owner).__mro__ if _is_library(cls)}
    if leaf in ("bias", "b"):
        return None
    kind: Kind | None = next((_KINDS[name] for name in names if name in _KINDS), None)
    if kind is not None:
        return Known(kind)
    known = _linear(owner, names, leaf, shape)
    if known is not None and any(_is_cell(module) for module in modules):
        return Known("recurrent", known.stack, known.rows, known.cols)
    return known


def _linear(owner: Any, names: set[str], leaf: str, shape: tuple[int, ...]) -> Known | None:
    """A linear layer's axes by its numbers of features."""
    ins, outs = (
        _sizes(getattr(owner, "in_features", None)),
        _sizes(getattr(owner, "out_features", None)),
    )
    equation = getattr(owner, "einsum_str", None)
    if isinstance(equation, str) and leaf in ("kernel", "w", "weight"):
        return _einsum(equation, getattr(owner, "kernel_shape", None), shape)
    if "Einsum" in names and leaf == "kernel":
        return Known("unclear")
    if ins is None or outs is None:
        return None
    if "Linear" in names and leaf == "weight":
        return _split((*outs, *ins), len(outs), shape, is_out_first=True)
    if names & {"Linear", "LinearGeneral"} and leaf == "kernel":
        if getattr(owner, "batch_axis", None):
            return Known("unclear")
        return _split((*ins, *outs), len(ins), shape, is_out_first=False)
    return None


def _split(
    expected: tuple[int, ...], at: int, shape: tuple[int, ...], *, is_out_first: bool
) -> Known:
    """The axes of a weight with the shape of one layer, or of several stacked layers."""
    stack = _extra(expected, shape)
    if stack is None:
        return Known("unclear")
    kept = [axis for axis in range(len(shape)) if axis not in stack]
    first, second = tuple(kept[:at]), tuple(kept[at:])
    rows, cols = (first, second) if is_out_first else (second, first)
    return Known("linear", stack, rows, cols)


def _einsum(equation: str, expected: Any, shape: tuple[int, ...]) -> Known:
    """The axes of an einsum's weight, its second operand."""
    left, _, out = equation.replace(" ", "").partition("->")
    x, _, weight = left.partition(",")
    if "." in weight or "," in weight or not out or len(weight) > len(shape):
        return Known("unclear")
    sizes = _sizes(expected)
    leading = tuple(range(len(shape) - len(weight)))
    stack = leading if sizes is None else _extra(sizes, shape)
    if stack is None or len(stack) != len(leading):
        return Known("unclear")
    kept = [axis for axis in range(len(shape)) if axis not in stack]
    rows = tuple(axis for axis, name in zip(kept, weight, strict=True) if name not in x)
    cols = tuple(axis for axis, name in zip(kept, weight, strict=True) if name not in out)
    # An axis of both inputs and outputs is a batch of maps, which is not one matrix.
    if len(rows) + len(cols) != len(kept) or not rows or not cols:
        return Known("unclear")
    return Known("linear", stack, rows, cols)


def _extra(expected: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of a shape besides the expected ones; None if some expected ones are absent."""
    axes = range(len(shape))
    if len(shape) < len(expected):
        return None
    for extra in combinations(axes, len(shape) - len(expected)):
        if tuple(shape[axis] for axis in axes if axis not in extra) == expected:
            return extra
    return None


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Sizes of features: a number, several, or Equinox's ``"scalar"``."""
    if value == "scalar":
        return (1,)
    if isinstance(value, int):
        return (value,)
    if isinstance(value, tuple | list) and all(isinstance(size, int) for size in value):
        return tuple(value)
    return None


def _is_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("flax", "equinox")


def _is_module(value: Any) -> bool:
    """Whether an object is a module of Flax or Equinox, and not a variable of NNX."""
    return any(_is_library(cls) and cls.__name__ == "Module" for cls in type(value).__mro__)


def _is_cell(value: Any) -> bool:
    return any(_is_library(cls) and cls.__name__ in _CELLS for cls in type(value).__mro__)
