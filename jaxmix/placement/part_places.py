"""Places of weights in memory that are a part of a leaf, or have other axes or rows there."""

from jaxmix.placement.place import Place
from jaxmix.placement.regions import Piece, Region

__all__ = ["UnmappedError", "memory_shape", "part_place"]


class UnmappedError(Exception):
    """A site that can't be brought to the leaves, with the reason."""


def part_place(
    leaf: str,
    shape: tuple[int, ...],
    at: Region,
    is_transposed: bool = False,
    heads: int = 0,
) -> Place:
    """Returns where a weight in memory is.

    Args:
        leaf: The leaf's name.
        shape: Its shape.
        at: The part of it that is the weight.
        is_transposed: As in `Piece`.
        heads: As there.

    Raises:
        UnmappedError: If the leaf does not have such a part.

    Example:
        >>> part_place("qkv.weight", (6, 2), Region(part=1, parts=3)).index
        '2:4'
        >>> part_place("q.weight", (8, 2), Region(), heads=2).axes
        '(n h two) b -> (n two h) b'
    """
    index: list[str] = [] if at.expert < 0 else [str(at.expert)]
    size = list(shape[len(index) :])
    if at.parts > 1:
        rows = at.rows(size[at.axis])
        if rows is None:
            raise UnmappedError(f"{leaf} {shape} can't be split into {_described(at)}")
        size[at.axis] = len(range(size[at.axis])[rows])
        step = "" if rows.step is None else f":{rows.step}"
        index += [":"] * at.axis
        index.append(f"{rows.start}:{rows.stop}{step}")
    axes, sizes = ("... i o -> ... o i" if is_transposed else None), ()
    if heads:
        axes, sizes = _halves(leaf, size, heads)
        if is_transposed:
            raise UnmappedError(f"{leaf} is transposed, and its rows have another order")
    return Place(leaf, axes, ", ".join(index) or None, sizes)


def memory_shape(piece: Piece, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a leaf with its axes as in memory.

    Args:
        piece: What the leaf is in memory.
        shape: Its shape.
    """
    return (*shape[:-2], shape[-1], shape[-2]) if piece.is_transposed else shape


def _halves(
    leaf: str, shape: list[int], heads: int
) -> tuple[str, tuple[tuple[str, int], tuple[str, int]]]:
    """The pattern that takes alternating rows of each head apart, or together."""
    rows = shape[-2] if len(shape) > 1 else shape[0]
    count = abs(heads)
    if rows % (2 * count):
        raise UnmappedError(
            f"{leaf} has {rows} rows there, which are not those of {count} heads with two halves"
        )
    stack, rest = ("a " if len(shape) > 2 else ""), (" b" if len(shape) > 1 else "")
    sides = [f"{stack}(n h two){rest}", f"{stack}(n two h){rest}"]
    return " -> ".join(sides if heads > 0 else sides[::-1]), (("n", count), ("two", 2))


def _described(at: Region) -> str:
    """The parts of a leaf, for messages."""
    if not at.sizes:
        return f"{at.parts} equal parts"
    if not any(at.sizes):
        return (
            f"{at.parts} parts without their sizes, which the model's config.json states: pass it "
            "as names="
        )
    return f"parts of {', '.join(map(str, at.sizes))} rows"
