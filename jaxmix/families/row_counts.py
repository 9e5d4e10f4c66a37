"""The size of an update's weight, determined from the shapes of the update's factors."""

import numpy as np

from jaxmix.families.base import Update
from jaxmix.families.delta import Delta
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.normed import Normed
from jaxmix.families.rows import Rows
from jaxmix.families.together import Together

__all__ = ["matrix_shape", "row_count"]


def matrix_shape(update: Update) -> tuple[int, int] | None:
    """Returns (out, in) of the weight of an update; None if the factors do not determine it.

    Args:
        update: The update.

    Example:
        >>> matrix_shape(LoRA(np.ones((1, 3)), np.ones((2, 1)), 1.0))
        (2, 3)
    """
    match update:
        case LoRA():
            return update.b.shape[0], update.a.shape[1]
        case LoHa(t1=None):
            return update.b1.shape[0], update.a1.shape[1]
        case LoKr(t2=None) if np.ndim(update.y[-1]) == 2:
            (rows, columns), (height, width) = (
                (np.shape(side[0])[0], np.shape(side[-1])[1]) for side in (update.x, update.y)
            )
            return rows * height, columns * width
        case Delta() if update.weight is not None and np.ndim(update.weight) == 2:
            rows, columns = np.shape(update.weight)
            return rows, columns
        case Rows():
            shape = matrix_shape(update.update)
            return None if shape is None else (update.stop - update.start, shape[1])
        case Normed():
            return matrix_shape(update.update)
        case Together():
            return next(filter(None, map(matrix_shape, update.parts)), None)
        case _:
            return None


def row_count(update: Update) -> int | None:
    """Returns the number of rows of an update's weight; None if the factors do not determine it.

    Args:
        update: The update.

    Example:
        >>> row_count(DiagOFT(np.ones((3, 2, 2))))
        6
    """
    if isinstance(update, DiagOFT) and update.side == "out":
        if update.rescale is not None:
            return update.rescale.shape[0]
        # PEFT may repeat a single block; LyCORIS, whose factor is 1, does not.
        blocks = update.blocks
        is_repeated = blocks is not None and len(blocks) == 1 and update.factor != 1
        return None if blocks is None or is_repeated else len(blocks) * blocks.shape[1]
    shape = matrix_shape(update)
    if shape is None and isinstance(update, Delta):
        leaf = update.bias if update.weight is None else update.weight
        return None if leaf is None else np.shape(leaf)[0]
    return None if shape is None else shape[0]
