"""Assembles a tensor of a model in memory from several leaves, or from a part of one."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import einops
import numpy as np

from jaxmix.errors import LayoutError
from jaxmix.placement.canonical import Holding
from jaxmix.placement.part_places import UnmappedError, part_place
from jaxmix.placement.place import parsed_index
from jaxmix.placement.regions import WHOLE

__all__ = ["assembled", "assembled_shape"]


def assembled(pieces: Sequence[Holding], read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Returns a weight in memory, read from the leaves that hold it.

    Args:
        pieces: The leaves, by expert and part.
        read: Maps a module's name to its weight.

    Returns:
        The weight (out, in), or (experts, out, in).

    Raises:
        LayoutError: If its numbers can't be computed.

    Example:
        >>> from jaxmix.placement.regions import Piece, Region
        >>> pieces = [Piece("fused", memory=Region(-1, part, 2)) for part in (0, 1)]
        >>> holdings = [Holding(f"{n}.weight", piece) for n, piece in enumerate(pieces)]
        >>> assembled(holdings, lambda name: np.full((1, 2), float(name))).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    _check(pieces)
    experts = []
    for _, group in groupby(pieces, lambda holding: holding.piece.memory.expert):
        parts = [_part(holding, read(holding.leaf.removesuffix(".weight"))) for holding in group]
        axis = pieces[0].piece.memory.axis
        experts.append(np.concatenate(parts, axis) if len(parts) > 1 else parts[0])
    return np.stack(experts) if pieces[0].piece.memory.expert >= 0 else experts[0]


def assembled_shape(
    pieces: Sequence[Holding], shapes: Mapping[str, tuple[int, ...] | None]
) -> tuple[int, ...]:
    """Returns the shape of a weight in memory from the shapes of the leaves that hold it.

    Args:
        pieces: As in `assembled`.
        shapes: The shape of each module's weight.
    """

    def read(name: str) -> np.ndarray:
        shape = shapes[name]
        return np.broadcast_to(np.zeros((), np.bool_), (0,) if shape is None else shape)

    _check(pieces)
    sizes = [_part(h, read(h.leaf.removesuffix(".weight"))).shape for h in pieces]
    of_expert = [
        s
        for s, h in zip(sizes, pieces, strict=True)
        if h.piece.memory.expert == pieces[0].piece.memory.expert
    ]
    axis = pieces[0].piece.memory.axis
    matrix = (
        *of_expert[0][:axis],
        sum(size[axis] for size in of_expert),
        *of_expert[0][axis + 1 :],
    )
    experts = (len(pieces) // len(of_expert),) if pieces[0].piece.memory.expert >= 0 else ()
    return (*experts, *matrix)


def _check(pieces: Sequence[Holding]) -> None:
    for holding in pieces:
        if holding.piece.problem:
            raise LayoutError(
                f"transformers makes {holding.piece.name} from {holding.leaf} by "
                f"{holding.piece.problem}, which is not supported."
            )


def _part(holding: Holding, weight: np.ndarray) -> np.ndarray:
    """The part of a leaf that a tensor in memory holds."""
    piece = holding.piece
    if piece.disk == WHOLE and not piece.is_transposed and not piece.heads:
        return weight
    try:
        place = part_place(holding.leaf, weight.shape, piece.disk, piece.is_transposed, piece.heads)
    except UnmappedError as error:
        raise LayoutError(f"{piece.name}: {error}.") from error
    part = weight if place.index is None else weight[parsed_index(place.index, weight.shape)]
    if place.axes is None:
        return part
    return einops.rearrange(part, place.axes, **dict(place.sizes))
