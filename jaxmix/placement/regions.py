"""Parts of tensors, and where each tensor on disk is in memory."""

from dataclasses import dataclass, replace

__all__ = ["WHOLE", "Piece", "Region", "has_swapped_halves", "swapped_halves"]


@dataclass(frozen=True, order=True)
class Region:
    """A part of a tensor; without arguments, all of it.

    Args:
        expert: The index along the first axis of a stack of matrices; -1 for all of them.
        part: The position of this part, if several weights are joined along an axis.
        parts: The number of weights that are joined.
        axis: The axis along which they are joined; in a matrix of a stack, that of the matrix.
        alternates: Whether the rows of the weights alternate, instead of following one another.
        sizes: The number of rows of each weight, zeros if unknown; empty if they are equal.
        is_ratio: Whether the sizes are proportions, such as (1, 1, 1, 4). Zeros stand for a square
            q with k and v of one other size: `fitted` finds them.
    """

    expert: int = -1
    part: int = 0
    parts: int = 1
    axis: int = 0
    alternates: bool = False
    sizes: tuple[int, ...] = ()
    is_ratio: bool = False

    def contains(self, other: "Region") -> bool:
        """Returns whether another region of the same tensor is inside this one, or equal."""
        holds_expert = self.expert in (-1, other.expert)
        return holds_expert and (self.parts == 1 or replace(self, expert=other.expert) == other)

    def fitted(self, shape: tuple[int, ...]) -> "Region":
        """Returns the same part, with the sizes of q, k and v if the tensor's shape states them.

        Args:
            shape: The tensor's shape.

        Example:
            >>> Region(part=1, parts=3, sizes=(0, 0, 0), is_ratio=True).fitted((8, 4)).sizes
            (4, 2, 2)
        """
        if not self.is_ratio or any(self.sizes) or self.parts != 3 or len(shape) != 2:
            return self
        size, remainder = divmod(shape[0] - shape[1], 2)
        if size < 1 or remainder:
            return self
        return replace(self, sizes=(shape[1], size, size), is_ratio=False)

    def rows(self, total: int) -> slice | None:
        """Returns the range of rows that the part has in the tensor.

        Args:
            total: The number of the tensor's rows.

        Returns:
            The range; None if the sizes of the parts do not add up to the total.

        Example:
            >>> Region(part=1, parts=2).rows(6)
            slice(3, 6, None)
        """
        sizes = self.sizes or (total // self.parts,) * self.parts
        if self.is_ratio and sum(sizes):
            sizes = tuple(size * (total // sum(sizes)) for size in sizes)
        if sum(sizes) != total:
            return None
        if self.alternates:
            return slice(self.part, total, self.parts)
        start = sum(sizes[: self.part])
        return slice(start, start + sizes[self.part])


WHOLE = Region()


@dataclass(frozen=True, order=True)
class Piece:
    """Where a tensor on disk, or a part of it, is in memory.

    ``tensor_in_memory[memory] = tensor_on_disk[disk]``.

    Args:
        name: The tensor's name in memory.
        disk: The part of the tensor on disk.
        memory: The part of the tensor in memory.
        is_transposed: Whether the matrix is transposed in memory.
        heads: The number of heads if the rows of each head's two halves alternate on disk and
            follow one another in memory; the negative number for the reverse; 0 if all rows keep
            their order.
        problem: An unsupported operation on the tensor; "" if there is none.
        swap_ratio: The rows per column of a weight whose two halves are swapped in memory; 0 if
            the shape does not decide that. `fitted` resolves it.
    """

    name: str
    disk: Region = WHOLE
    memory: Region = WHOLE
    is_transposed: bool = False
    heads: int = 0
    problem: str = ""
    swap_ratio: int = 0

    def fitted(self, shape: tuple[int, ...] | None) -> tuple["Piece", ...]:
        """Returns the pieces of a tensor, now that the shape of its module's weight is known.

        Args:
            shape: The weight's shape; None if it is unknown.

        Example:
            >>> piece = Piece("norm.bias", swap_ratio=2)
            >>> [(half.disk.part, half.memory.part) for half in piece.fitted((8, 4))]
            [(0, 1), (1, 0)]
            >>> piece.fitted((24, 4))
            (Piece(name='norm.bias', disk=Region(expert=-1, part=0, parts=1, axis=0, ...
        """
        if not self.swap_ratio:
            disk = self.disk if shape is None else self.disk.fitted(shape)
            return (self if disk is self.disk else replace(self, disk=disk),)
        if shape is None or len(shape) != 2:
            return (replace(self, problem="an order of rows that the weight's shape determines"),)
        is_swapped = shape[0] == self.swap_ratio * shape[1]
        return swapped_halves(self.name) if is_swapped else (Piece(self.name),)


def has_swapped_halves(pieces: tuple[Piece, ...]) -> bool:
    """Returns whether the pieces of a tensor are its two halves, swapped, or may be.

    Args:
        pieces: The pieces of one tensor on disk.
    """
    return any(piece.swap_ratio for piece in pieces) or (
        len(pieces) == 2 and pieces == swapped_halves(pieces[0].name)
    )


def swapped_halves(name: str) -> tuple[Piece, Piece]:
    """Returns the pieces of a tensor whose two halves are swapped in memory.

    Args:
        name: The tensor's name in memory.
    """
    first, second = Region(part=0, parts=2), Region(part=1, parts=2)
    return Piece(name, first, second), Piece(name, second, first)
