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
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.glora import GLoRA, SupportTensor
from jaxmix.families.hira import HiRA
from jaxmix.families.leaf_update import LeafUpdate
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
    """Some rows of an update: ``W[a:b] ↦ (L W Rᵀ + Δ)[a:b]``, for an L that keeps them together.

    It is what is left of an update of a fused weight, such as a LoKr of q, k and v, at a leaf that
    holds one of its parts.

    Args:
        update: The update of the whole weight; one that does not read the base.
        start: a, the first row.
        stop: b, the row after the last.
        size_of_whole: The number of rows of the whole weight.

    Example:
        >>> from jaxmix.families.lokr import LoKr
        >>> whole = LoKr((jnp.ones((2, 1)),), (jnp.ones((2, 3)),), 1.0)
        >>> Rows(whole, 1, 4, 4).weight_map(Base(None, (3, 3)), jnp.ones(())).shape
        (3, 3)

    Source: docs/design.md, "Names".
    """

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    size_of_whole: int = field(metadata={"static": True})

    family: ClassVar[str] = "Rows"
    trained: ClassVar[tuple[str, ...]] = ("update",)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The rows of the whole update's map."""
        whole = self.update.weight_map(self._whole(base), strength)
        return cut_rows([whole], slice(self.start, self.stop))[0]

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The rows of the whole update's map of the bias."""
        whole = self.update.bias_map(self._whole(base), strength)
        return cut_rows([whole], slice(self.start, self.stop))[0]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the whole update fits the whole weight, and the rows this one."""
        count = self.stop - self.start
        if shape[0] != count:
            return f"rows {self.start}:{self.stop} of a fused weight are {count}, found {shape[0]}"
        return self.update.misfit((self.size_of_whole, shape[1]))

    def size(self) -> str:
        """The whole update's size, and which rows."""
        return f"{self.update.family} {self.update.size()}, rows {self.start}:{self.stop}"

    def _whole(self, base: Base) -> Base:
        return Base(None, (self.size_of_whole, base.shape[1]))


@singledispatch
def rows_of(update: Update, part: slice, shape: tuple[int, int]) -> Update | None:
    """Returns the update of some rows of its weight, as if they were a weight of their own.

    Args:
        update: An update of the whole weight, which must not be transposed.
        part: The rows, with start and stop.
        shape: (out, in) of the whole weight.

    Returns:
        The update; None if it mixes these rows with others, or reads others of the base's.

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
    found = [rows_of(each, part, shape) for each in update.parts]
    return None if None in found else Together(tuple(each for each in found if each is not None))


def _cut_map(update: Update, part: slice, shape: tuple[int, int]) -> Update | None:
    """The rows of an update's maps; None if they do not keep these rows together."""
    if update.reads_base or update.is_base_side or update.misfit(shape) or part.step is not None:
        return None
    for kind in ("weight", "bias"):
        made = _map_of.eval_shape(jax.tree.map(_abstract, update), shape, kind)
        unit = row_unit([made])
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
        The update; None if the update is not one of experts.

    Example:
        >>> two = ExpertLoRA(jnp.ones((2, 1, 3)), jnp.ones((2, 4, 1)), scale=1.0)
        >>> expert_of(two, 1).b.shape
        (4, 1)
    """
    return None


@expert_of.register
def _(update: ExpertLoRA, number: int) -> Update | None:
    # Factors that don't fit are found by the check of the whole.
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
def _map_of(update: Update, shape: tuple[int, int], kind: str) -> AffineMap:
    base, one = Base(None, shape), jnp.ones((), np.float32)
    return update.weight_map(base, one) if kind == "weight" else update.bias_map(base, one)
