"""Updates of some rows of a weight, where a model stores the parts of a fused weight separately."""

from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update
from jaxmix.families.boft import BOFT
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.glora import GLoRA, SupportTensor
from jaxmix.families.hira import HiRA
from jaxmix.families.leaf_update import LeafUpdate
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.normed import Normed
from jaxmix.families.rebase import Rebase
from jaxmix.families.together import Together
from jaxmix.families.wrapped import WrappedUpdate
from jaxmix.pytrees import register_dataclass
from jaxmix.row_cuts import cut_rows, row_unit

__all__ = ["Rows", "expert_of", "rows_of"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Rows(WrappedUpdate):
    """Some rows of an update: ``W[a:b] ↦ (L W Rᵀ + Δ)[a:b]``, if L does not mix them with others.

    It applies an update of a fused weight, such as a LoKr of q, k and v, to a leaf that holds one
    part of this weight, if the update's family has no form for a part.

    Args:
        update: The update of the fused weight, which must not read the base.
        start: a, the first row.
        stop: b, the row after the last.
        fused_rows: The number of rows of the fused weight.

    Example:
        >>> from jaxmix.families.lokr import LoKr
        >>> fused = LoKr((jnp.ones((2, 1)),), (jnp.ones((2, 3)),), 1.0)
        >>> Rows(fused, 1, 4, 4).weight_map(Base(None, (3, 3)), jnp.ones(())).shape
        (3, 3)

    Source: docs/design.md, "Names".
    """

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    fused_rows: int = field(metadata={"static": True})

    family: ClassVar[str] = "Rows"
    trained: ClassVar[tuple[str, ...]] = ("update",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The rows of the inner update's map."""
        fused_map = self.update.weight_map(self._fused_base(base), strength)
        return cut_rows([fused_map], slice(self.start, self.stop))[0]

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The rows of the inner update's map of the bias."""
        fused_map = self.update.bias_map(self._fused_base(base), strength)
        return cut_rows([fused_map], slice(self.start, self.stop))[0]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the inner update fits the fused weight, and the rows this weight."""
        count = self.stop - self.start
        if shape[0] != count:
            return (
                f"the weight has {shape[0]} rows, expected {count}, rows {self.start}:{self.stop} "
                "of a fused weight"
            )
        return self.update.misfit((self.fused_rows, shape[1]))

    def size(self) -> str:
        """The inner update's size, and the rows."""
        return f"{self.update.family} {self.update.size()}, rows {self.start}:{self.stop}"

    def _fused_base(self, base: Base) -> Base:
        return Base(None, (self.fused_rows, base.shape[1]))


@singledispatch
def rows_of(update: Update, part: slice, shape: tuple[int, int]) -> Update | None:
    """Returns the part of an update that changes some rows of its weight, as an update of these.

    Args:
        update: An update of the full weight, which must not be transposed.
        part: The rows, with start and stop.
        shape: (out, in) of the full weight.

    Returns:
        The update; None if it mixes these rows with others, or reads other rows of the base.

    Example:
        >>> lora = LoRA(a=jnp.ones((1, 2)), b=jnp.ones((4, 1)), scale=1.0)
        >>> rows_of(lora, slice(0, 3), (4, 2)).b.shape
        (3, 1)
    """
    return _cut_map(update, part, shape)


@rows_of.register
def _(update: LoRA, part: slice, shape: tuple[int, int]) -> Update | None:
    if update.magnitude is not None and update.embedding:
        return None
    return replace(
        update,
        b=update.b[part],
        magnitude=None if update.magnitude is None else update.magnitude[part],
        bias=None if update.bias is None else update.bias[part],
    )


@rows_of.register
def _(update: LoHa, part: slice, shape: tuple[int, int]) -> Update | None:
    if update.t1 is not None or update.misfit(shape):
        return _cut_map(update, part, shape)
    return replace(update, b1=update.b1[part], b2=update.b2[part])


@rows_of.register
def _(update: LoKr, part: slice, shape: tuple[int, int]) -> Update | None:
    height = shape[0] // update.x[0].shape[0]
    if update.misfit(shape) or part.step is not None or part.start % height or part.stop % height:
        return _cut_map(update, part, shape)
    # These are the rows of entire blocks; rows within a block would not be a Kronecker product.
    top = update.x[0][part.start // height : part.stop // height]
    return replace(update, x=(top, *update.x[1:]))


@rows_of.register
def _(update: HiRA, part: slice, shape: tuple[int, int]) -> Update | None:
    return replace(update, b=update.b[part])


@rows_of.register
def _(update: GLoRA, part: slice, shape: tuple[int, int]) -> Update | None:
    def cut(tensor: SupportTensor) -> SupportTensor:
        # A number broadcasts to all rows.
        return (tensor[0][part] if tensor[0].shape[0] == shape[0] else tensor[0], *tensor[1:])

    cut_a = update.a if update.on_input or not update.a else cut(update.a)
    b, d, e = (cut(x) if x else x for x in (update.b, update.d, update.e))
    return replace(update, a=cut_a, b=b, d=d, e=e)


@rows_of.register
def _(update: BOFT, part: slice, shape: tuple[int, int]) -> Update | None:
    if update.on_output:
        return None if update.rescale is not None else _cut_map(update, part, shape)
    return replace(update, rescale=None if update.rescale is None else update.rescale[part])


@rows_of.register
def _(update: DiagOFT, part: slice, shape: tuple[int, int]) -> Update | None:
    blocks = update.blocks
    if blocks is None or update.side != "out" or len(blocks) * blocks.shape[1] != shape[0]:
        return _cut_map(update, part, shape)
    b = blocks.shape[1]
    if update.bound is not None or part.step is not None or part.start % b or part.stop % b:
        return _cut_map(update, part, shape)
    rescale = None if update.rescale is None else update.rescale[part]
    return replace(update, blocks=blocks[part.start // b : part.stop // b], rescale=rescale)


@rows_of.register
def _(update: Rebase, part: slice, shape: tuple[int, int]) -> Update | None:
    return replace(update, weight=update.weight[part])


@rows_of.register
def _(update: LeafUpdate, part: slice, shape: tuple[int, int]) -> Update | None:
    weight, bias = (None if x is None else x[part] for x in (update.weight, update.bias))
    return replace(update, weight=weight, bias=bias)


@rows_of.register
def _(update: Normed, part: slice, shape: tuple[int, int]) -> Update | None:
    inner = rows_of(update.update, part, shape)
    if inner is None or update.axis == "in":
        return None
    return replace(update, update=inner, magnitude=update.magnitude[part])


@rows_of.register
def _(update: Together, part: slice, shape: tuple[int, int]) -> Update | None:
    cut = [rows_of(inner, part, shape) for inner in update.parts]
    return None if None in cut else Together(tuple(inner for inner in cut if inner is not None))


def _cut_map(update: Update, part: slice, shape: tuple[int, int]) -> Update | None:
    """The rows of an update's maps; None if the maps mix these rows with others."""
    if update.reads_base or update.is_base_side or update.misfit(shape) or part.step is not None:
        return None
    for leaf in ("weight", "bias"):
        affine_map = _map_of.eval_shape(jax.tree.map(_abstract, update), shape, leaf)
        unit = row_unit([affine_map])
        if unit is None or part.start % unit or part.stop % unit:
            return None
    return Rows(update, part.start, part.stop, shape[0])


@singledispatch
def expert_of(update: Update, number: int) -> Update | None:
    """Returns the update of one expert's matrix (out, in) in a stacked leaf (experts, out, in).

    Args:
        update: An update of the stacked leaf.
        number: The expert's number.

    Returns:
        The update of this expert; None if the family has no updates of single experts.

    Example:
        >>> two = ExpertLoRA(jnp.ones((2, 1, 3)), jnp.ones((2, 4, 1)), scale=1.0)
        >>> expert_of(two, 1).b.shape
        (4, 1)
    """
    return None


@expert_of.register
def _(update: ExpertLoRA, number: int) -> Update | None:
    # Factors that don't fit are reported by the check of the full update.
    a, b = (x[number] if number < x.shape[0] else x[:0] for x in (update.a, update.b))
    return LoRA(b.T, a.T, update.scale) if update.in_first else LoRA(a, b, update.scale)


@expert_of.register
def _(update: LeafUpdate, number: int) -> Update | None:
    weight, bias = (None if x is None else x[number] for x in (update.weight, update.bias))
    return replace(update, weight=weight, bias=bias)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jax.ShapeDtypeStruct(np.shape(leaf), np.float32 if is_float else jnp.result_type(leaf))


# `jit` caches the trace: a base has many sites of the same shape.
@partial(jax.jit, static_argnums=(1, 2))
def _map_of(update: Update, shape: tuple[int, int], leaf: str) -> AffineMap:
    base, strength = Base(None, shape), jnp.ones((), np.float32)
    return (
        update.weight_map(base, strength) if leaf == "weight" else update.bias_map(base, strength)
    )
