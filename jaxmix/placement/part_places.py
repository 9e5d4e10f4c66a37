"""Places of weights that are a part of a leaf, or whose axes or rows have another order there."""

from jaxmix.placement.place import Place
from jaxmix.placement.regions import Piece, Region

__all__ = ["UnmappedError", "memory_shape", "part_place"]


class UnmappedError(Exception):
    """A site or update that can't be mapped to the leaves; the message is the reason."""


def part_place(
    leaf: str,
    shape: tuple[int, ...],
    region: Region,
    is_transposed: bool = False,
    heads: int = 0,
) -> Place:
    """Returns the place of a weight in memory.

    Args:
        leaf: The name of the leaf that holds it.
        shape: The leaf's shape.
        region: The part of the leaf that is the weight.
        is_transposed: As in `Piece`.
        heads: As in `Piece`.

    Raises:
        UnmappedError: If the leaf does not have such a part.

    Example:
        >>> part_place("qkv.weight", (6, 2), Region(part=1, parts=3)).index
        '2:4'
        >>> part_place("q.weight", (8, 2), Region(), heads=2).axes
        '(n h two) b -> (n two h) b'
    """
    index: list[str] = [] if region.expert < 0 else [str(region.expert)]
    size = list(shape[len(index) :])
    if region.parts > 1:
        rows = region.rows(size[region.axis])
        if rows is None:
            raise UnmappedError(f"{leaf} {shape} can't be split into {_described(region)}")
        size[region.axis] = len(range(size[region.axis])[rows])
        step = "" if rows.step is None else f":{rows.step}"
        index += [":"] * region.axis
        index.append(f"{rows.start}:{rows.stop}{step}")
    axes, sizes = ("... i o -> ... o i" if is_transposed else None), ()
    if heads:
        axes, sizes = _halves(leaf, size, heads)
        if is_transposed:
            raise UnmappedError(f"{leaf} is transposed and its rows are reordered: unsupported")
    return Place(leaf, axes, ", ".join(index) or None, sizes)


def memory_shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a leaf with its axes as in memory.

    Args:
        piece: Where the leaf is in memory.
        shape: The leaf's shape.
    """
    return (*shape[:-2], shape[-1], shape[-2]) if piece.is_transposed else shape


def _halves(
    leaf: str, shape: list[int], heads: int
) -> tuple[str, tuple[tuple[str, int], tuple[str, int]]]:
    """The pattern that separates the alternating rows of each head's halves, or the reverse."""
    rows = shape[-2] if len(shape) > 1 else shape[0]
    count = abs(heads)
    if rows % (2 * count):
        raise UnmappedError(
            f"{leaf} has {rows} rows, which can't be divided into {count} heads with two halves"
        )
    stack, columns = ("a " if len(shape) > 2 else ""), (" b" if len(shape) > 1 else "")
    sides = [f"{stack}(n h two){columns}", f"{stack}(n two h){columns}"]
    return " -> ".join(sides if heads > 0 else sides[::-1]), (("n", count), ("two", 2))


def _described(region: Region) -> str:
    """The parts of a leaf, for messages."""
    if not region.sizes:
        return f"{region.parts} equal parts"
    if not any(region.sizes):
        return (
            f"{region.parts} parts without their sizes, which the model's config.json states: pass "
            "it as names="
        )
    return f"parts of {', '.join(map(str, region.sizes))} rows"
