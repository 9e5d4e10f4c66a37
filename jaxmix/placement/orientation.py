"""Which way a linear layer's weight lies, as far as the shapes of a model's leaves tell.

PyTorch stores the weight of ``torch.nn.Linear`` as (out, in) and that of transformers' ``Conv1D``,
which GPT-2 and its relatives have, as (in, out). Flax stores kernels as (in, out), but its port of
``Conv1D`` as (out, in).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

__all__ = ["CONV1D_NAMES", "OutAxes", "may_be_conv1d"]

# What transformers calls its modules of class Conv1D, in every model that has one.
CONV1D_NAMES = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})


class OutAxes:
    """Which axis of a linear layer's weight is its output: the one of its bias's size.

    A square weight does not tell. Then its namesakes do (``mlp.c_proj`` for ``attn.c_proj``), and
    for a module that has a name of transformers' ``Conv1D`` the others of its block.

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
        """Returns 0 or 1 for a leaf, or None if the tree does not tell."""
        if (own := self.own(name)) is not None:
            return own
        if (namesakes := _single(self._namesakes[_kind(name)])) is not None:
            return namesakes
        return self.of_block(name) if may_be_conv1d(name) else None

    def of_block(self, name: str) -> int | None:
        """Returns the axis of the nearest modules in the leaf's numbered block that tell one.

        All layers of a model count as one block: ``layers.0`` and ``layers.1`` are alike.
        """
        for path in _blocks(name):
            if path in self._in_blocks:
                return _single(self._in_blocks[path])
        return None

    def is_linear(self, name: str) -> bool:
        """Whether a PyTorch weight is a ``torch.nn.Linear``'s, as far as other leaves tell.

        Every ``Conv1D`` has a bias. The linear layers of a block are of one class; where they are
        not, as in CLVP or a ViT beside a GPT-2, the ``Conv1D`` have their usual names.
        """
        is_bare = _bias(name) not in self._shapes
        if not may_be_conv1d(name) and (is_bare or self._has_usual_names):
            return True
        return self.of_block(name) == 0

    @cached_property
    def _has_usual_names(self) -> bool:
        """Whether there are ``Conv1D`` that tell it, all of them with transformers' names."""
        found = [name for name, axis in self.known if axis == 1 and name.endswith(".weight")]
        return bool(found) and all(map(may_be_conv1d, found))

    @cached_property
    def _namesakes(self) -> dict[tuple[str, ...], set[int]]:
        """The axes of all weights that tell their own, by `_kind`."""
        found: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name, axis in self.known:
            found[_kind(name)].add(axis)
        return found

    @cached_property
    def _in_blocks(self) -> dict[tuple[str, ...], set[int]]:
        """The same by the paths around them."""
        found: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name, axis in self.known:
            for path in _blocks(name):
                found[path].add(axis)
        return dict(found)

    @cached_property
    def known(self) -> list[tuple[str, int]]:
        """The weights whose own bias tells their axis, each with it."""
        names = (name for name in self._shapes if name.endswith((".weight", ".kernel")))
        return [(name, axis) for name in names if (axis := self.own(name)) is not None]

    def own(self, name: str) -> int | None:
        """Returns the axis that a leaf's own bias tells, or None."""
        shape, bias = self._shapes[name], self._shapes.get(_bias(name), ())
        if len(shape) != 2 or len(bias) != 1 or shape.count(bias[0]) != 1:
            return None
        return shape.index(bias[0])


def may_be_conv1d(name: str) -> bool:
    """Whether a leaf's module has a name that transformers gives to a ``Conv1D``."""
    return name.rpartition(".")[0].rpartition(".")[2] in CONV1D_NAMES


def _bias(name: str) -> str:
    return f"{name.rpartition('.')[0]}.bias"


def _single(axes: set[int]) -> int | None:
    """The one axis on which all agree, or None."""
    return next(iter(axes)) if len(axes) == 1 else None


def _kind(name: str) -> tuple[str, ...]:
    """The end of a leaf's name by which its namesakes have it.

    That is the module's own name and the leaf's; a number alone, as in ``to_out.0.weight``, is no
    name.
    """
    *parts, leaf = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return (*parts[max(start, 0) :], leaf)


def _blocks(name: str) -> Iterator[tuple[str, ...]]:
    """The paths around a leaf's module that lie in a numbered block, the innermost one first."""
    parts = ["#" if part.isdigit() else part for part in name.split(".")[:-2]]
    first = parts.index("#") + 1 if "#" in parts else len(parts) + 1
    for end in range(len(parts), first - 1, -1):
        yield tuple(parts[:end])
