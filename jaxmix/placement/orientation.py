"""The orientation of linear layers' weights, determined from the shapes of a model's leaves.

PyTorch stores the weight of ``torch.nn.Linear`` as (out, in) and that of transformers' ``Conv1D``,
used by GPT-2 and related models, as (in, out). Flax stores kernels as (in, out), but its port of
``Conv1D`` as (out, in).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

__all__ = ["CONV1D_NAMES", "OutAxes", "may_be_conv1d"]

# The names of modules of class Conv1D in transformers.
CONV1D_NAMES = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})


class OutAxes:
    """Finds the output axis of a linear layer's weight: the axis of the bias's size.

    For a square weight, modules of the same name decide (``mlp.c_proj`` for ``attn.c_proj``). If
    there are none and the name is one of transformers' ``Conv1D``, other such modules of its block
    decide.

    Args:
        shapes: The shape of each leaf, by its dotted name.

    Example:
        >>> shapes = {"mlp.c_proj.weight": (6, 4), "mlp.c_proj.bias": (4,)}
        >>> axes = OutAxes({**shapes, "attn.c_proj.weight": (4, 4), "attn.c_proj.bias": (4,)})
        >>> axes.of("mlp.c_proj.weight"), axes.of("attn.c_proj.weight")
        (1, 1)
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._shapes = shapes

    def of(self, name: str) -> int | None:
        """Returns 0 or 1 for a leaf; None if the tree does not decide it."""
        if (axis := self.by_bias(name)) is not None:
            return axis
        if (namesakes := _single(self._namesakes[_kind(name)])) is not None:
            return namesakes
        return self.of_block(name) if may_be_conv1d(name) else None

    def of_block(self, name: str) -> int | None:
        """Returns the axis of the nearest decided modules in the leaf's numbered block.

        All layers of a model count as one block: ``layers.0`` and ``layers.1`` are alike.
        """
        for path in _blocks(name):
            if path in self._in_blocks:
                return _single(self._in_blocks[path])
        return None

    def is_linear(self, name: str) -> bool:
        """Returns whether other leaves show that a PyTorch weight is a ``torch.nn.Linear``'s.

        Every ``Conv1D`` has a bias. All linear layers of a block have one class, or, as in CLVP or
        a ViT next to a GPT-2, the ``Conv1D`` modules have their usual names.
        """
        is_bare = _bias(name) not in self._shapes
        if not may_be_conv1d(name) and (is_bare or self._has_usual_names):
            return True
        return self.of_block(name) == 0

    @cached_property
    def _has_usual_names(self) -> bool:
        """Whether there are known ``Conv1D`` modules, all with transformers' names."""
        found = [name for name, axis in self.known if axis == 1 and name.endswith(".weight")]
        return bool(found) and all(map(may_be_conv1d, found))

    @cached_property
    def _namesakes(self) -> dict[tuple[str, ...], set[int]]:
        """The axes of all weights decided by their own bias, by `_kind`."""
        found: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name, axis in self.known:
            found[_kind(name)].add(axis)
        return found

    @cached_property
    def _in_blocks(self) -> dict[tuple[str, ...], set[int]]:
        """The axes of these weights by the paths of the blocks around them."""
        found: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name, axis in self.known:
            for path in _blocks(name):
                found[path].add(axis)
        return dict(found)

    @cached_property
    def known(self) -> list[tuple[str, int]]:
        """The weights whose own bias decides their axis, with the axis."""
        names = (name for name in self._shapes if name.endswith((".weight", ".kernel")))
        return [(name, axis) for name in names if (axis := self.by_bias(name)) is not None]

    def by_bias(self, name: str) -> int | None:
        """Returns the axis that a leaf's own bias decides; None if it does not."""
        shape, bias = self._shapes[name], self._shapes.get(_bias(name), ())
        if len(shape) != 2 or len(bias) != 1 or shape.count(bias[0]) != 1:
            return None
        return shape.index(bias[0])


def may_be_conv1d(name: str) -> bool:
    """Returns whether a leaf's module has a name that transformers uses for ``Conv1D``."""
    return name.rpartition(".")[0].rpartition(".")[2] in CONV1D_NAMES


def _bias(name: str) -> str:
    return f"{name.rpartition('.')[0]}.bias"


def _single(axes: set[int]) -> int | None:
    """The axis on which all agree; None if they differ."""
    return next(iter(axes)) if len(axes) == 1 else None


def _kind(name: str) -> tuple[str, ...]:
    """The end of a leaf's name that modules of the same kind share.

    It consists of the module's own name and the leaf's. A bare number, as in ``to_out.0.weight``,
    is not a name.
    """
    *parts, leaf = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return (*parts[max(start, 0) :], leaf)


def _blocks(name: str) -> Iterator[tuple[str, ...]]:
    """The paths around a leaf's module inside a numbered block, innermost first."""
    parts = ["#" if part.isdigit() else part for part in name.split(".")[:-2]]
    first = parts.index("#") + 1 if "#" in parts else len(parts) + 1
    for end in range(len(parts), first - 1, -1):
        yield tuple(parts[:end])
