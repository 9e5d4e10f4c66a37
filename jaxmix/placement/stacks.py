"""Stacks of layers: subtrees in which each leaf has an additional axis of layers.

``nnx.vmap``, ``nnx.scan``, ``eqx.filter_vmap`` and Linen's ``nn.scan`` make such a subtree from one
block. A matrix alone does not show this, but a block's vectors (norms and biases) do: they have
two axes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Stack", "stacks"]

_VECTORS = ("bias", "b", "scale", "mean", "var")
_WEIGHTS = ("kernel", "w", "weight")
_PLURAL = re.compile(r"(.*_)?(layers|blocks|stack(ed)?|repeats)")
_NORM = re.compile(r"(.*[_.])?(layer_?norm|rms_?norm|batch_?norm|group_?norm|norm|ln)[^.]*", re.I)

# No model nests its layers deeper; a leaf's name may have any number of dots.
_DEEPEST = 100

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """One axis of layers of a leaf.

    Args:
        root: The name of the stacked subtree; "" for the whole tree.
        axis: The axis of the leaf.
        size: The number of layers.
    """

    root: str
    axis: int
    size: int


def stacks(
    shapes: Mapping[str, Shape], known: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Stack, ...]]:
    """Finds the axes of layers of each leaf, outermost stack first.

    Args:
        shapes: The shape of each leaf of floats, by its dotted name.
        known: The axes of layers that a leaf's class defines; () for a leaf without any.

    Returns:
        The stacks of each leaf that has any.

    Example:
        >>> found = stacks({"layers.up.kernel": (3, 4, 5), "layers.up.bias": (3, 5)}, {})
        >>> found["layers.up.kernel"]
        (Stack(root='layers', axis=0, size=3),)
    """
    found: dict[str, tuple[Stack, ...]] = {}
    free = {name: tuple(range(len(shape))) for name, shape in shapes.items()}
    _visit(0, dict(shapes), free, known, found)
    return found


def _visit(
    start: int,
    shapes: dict[str, Shape],
    free: dict[str, tuple[int, ...]],
    known: Mapping[str, tuple[int, ...]],
    found: dict[str, tuple[Stack, ...]],
    depth: int = 0,
) -> None:
    """Looks for a stack at a subtree and below it, and writes it to ``found``.

    ``free`` holds each leaf's axes that belong to no stack yet. The names of the subtree's leaves
    have everything before ``start`` in common.
    """
    root = next(iter(shapes), "")[: max(0, start - 1)]
    below = {name: tuple(shapes[name][axis] for axis in free[name]) for name in shapes}
    position = next(
        (position for position in (0, 1) if _is_stack(root, below, position, free, known)), None
    )
    if position is not None:
        top = root or _top(shapes)
        for name in shapes:
            axis = free[name][position]
            stack = Stack(top, axis, shapes[name][axis])
            found[name] = (*found.get(name, ()), stack)
            free[name] = tuple(other for other in free[name] if other != axis)
        if len(found[next(iter(shapes))]) < 3:
            _visit(start, shapes, free, known, found, depth)
        return
    if depth == _DEEPEST:
        return
    children: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (end := name.find(".", start)) >= 0:
            children.setdefault(name[start:end], {})[name] = shape
    for head, inside in children.items():
        _visit(start + len(head) + 1, inside, free, known, found, depth + 1)


def _top(names: Iterable[str]) -> str:
    """The common parent of a stack's leaves; for a list of modules, the parent of the list."""
    parts = [name.split(".")[:-2] for name in names]
    top: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        top.append(level[0])
    deeper = {name.split(".")[len(top)] for name in names if len(name.split(".")) > len(top)}
    return ".".join(top[:-1] if top and all(part.isdigit() for part in deeper) else top)


def _is_stack(
    root: str,
    shapes: Mapping[str, Shape],
    position: int,
    free: Mapping[str, tuple[int, ...]],
    known: Mapping[str, tuple[int, ...]],
) -> bool:
    """Whether all leaves of a subtree have an additional axis of one size at a position."""
    if not shapes or not all(len(shape) > position for shape in shapes.values()):
        return False
    if len({shape[position] for shape in shapes.values()}) != 1:
        return False
    known_shapes = {name: axes for name, axes in known.items() if name in shapes}
    if known_shapes:
        return all(free[name][position] in axes for name, axes in known_shapes.items())
    vectors = [name for name in shapes if _is_vector(name)]
    matrices = {name: shape for name, shape in shapes.items() if _last(name) in _WEIGHTS}
    matrices = {name: shape for name, shape in matrices.items() if name not in vectors}
    if not all(len(shape) > 2 for shape in matrices.values()):
        return False
    if vectors:
        fits = all(len(shapes[name]) > 1 for name in vectors)
        return fits and bool(matrices) and not _is_of_heads(shapes, position)
    start = len(root) + 1 if root else 0
    is_list = any(name[start:].partition(".")[0].isdigit() for name in shapes)
    return (
        bool(matrices)
        and not is_list
        and _PLURAL.fullmatch(root.rpartition(".")[2]) is not None
        and not any("conv" in name.lower() for name in matrices)
    )


def _is_of_heads(shapes: Mapping[str, Shape], position: int) -> bool:
    """Whether this is a single layer whose bias has axes of heads: (D, N, H) and (N, H)."""
    if len(shapes) != 2:
        return False
    bias, kernel = sorted(shapes.values(), key=len)
    return len(bias) > 1 and kernel[1:] == bias and bias != (kernel[position], kernel[-1])


def _is_vector(name: str) -> bool:
    """Whether a leaf is a vector by its name."""
    last = _last(name)
    return last in _VECTORS or (last in _WEIGHTS and _NORM.fullmatch(_module(name)) is not None)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]
