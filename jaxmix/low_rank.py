"""Any mix as one LoRA: the singular value decomposition of what it changes at each site."""

from typing import Any, Literal, overload
from zlib import crc32

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable
from jaxmix.effects import Effect, Spot, effects
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace, Update
from jaxmix.metadata import shared_metadata
from jaxmix.placement.layout import Layout
from jaxmix.singular import truncated

__all__ = ["Rank", "checked_rank", "compressed", "site_key", "to_lora"]

Rank = int | float | Literal["exact"] | None


@overload
def to_lora(
    mixed: Mixable,
    params: Any,
    *,
    rank: Rank = None,
    key: Array | None = None,
    layout: Layout | str | None = None,
    name: str | None = None,
    with_errors: Literal[False] = False,
) -> Adapter: ...
@overload
def to_lora(
    mixed: Mixable,
    params: Any,
    *,
    rank: Rank = None,
    key: Array | None = None,
    layout: Layout | str | None = None,
    name: str | None = None,
    with_errors: Literal[True],
) -> tuple[Adapter, dict[str, float]]: ...
def to_lora(
    mixed: Mixable,
    params: Any,
    *,
    rank: Rank = None,
    key: Array | None = None,
    layout: Layout | str | None = None,
    name: str | None = None,
    with_errors: bool = False,
) -> Adapter | tuple[Adapter, dict[str, float]]:
    """Any adapter or mix as one LoRA adapter: ``B A ≈ Δ = W' − W`` at each site, by SVD.

    Δ is the whole effect on these params, rotations, scalings, norms and all, so the LoRA stands
    for the mix on this base alone. At a site where all of the mix is of low rank (LoRA, AdaLoRA, a
    LoHa of small ranks, in any number) Δ is never made: the factors' QR and the SVD of a small core
    give the same. Elsewhere Δ is dense, one site at a time, in float32, or float64 where the params
    are.

    What is no matrix comes along exactly: a change of the bias as LoRA's ``bias``, a norm's weight,
    and a bias at a site whose weight stays, as `Replace`.

    Args:
        mixed: an adapter or a mix; its strengths are in the result, whose own is 1.
        params: the base, any pytree of weights.
        rank: a whole number r for all sites, A (r, in) and B (out, r), filled with zeros where the
            effect has less; or a share of the energy (the sum of squares) between 0 and 1, which
            each site keeps with as small a rank as it takes; None or "exact" for the rank that the
            effect has, to rounding.
        key: a PRNG key. With it, and a whole number as rank, large dense effects (both sides of
            768 or more, and the rank small against them) are decomposed by a randomised SVD:
            faster, and a little off the optimum. Without it every decomposition is exact.
        layout: where the sites lie in the tree, as in `jaxmix.compose`.
        name: the name of the result; by default the adapter's own, "lora" for a mix.
        with_errors: whether to return the errors too.

    Returns:
        The adapter, of scale 1 at each site, so that alpha is the rank. With ``with_errors`` a
        pair: the adapter, and ``{site: error}`` with ``‖Δ − B A‖ / ‖Δ‖`` (Frobenius, rounding
        aside) of each LoRA, as floats that a writer can put into a file's metadata.

    Raises:
        AdapterError: if ``mixed`` is no adapter, or the rank is none of these.
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import OFT
        >>> turned = Adapter({"proj": OFT(jnp.ones((2, 1)))}, name="turned")
        >>> params = {"proj.weight": jnp.eye(4)}
        >>> lora, errors = to_lora(turned, params, rank=2, with_errors=True)
        >>> lora
        turned: LoRA rank 2 at 1 site, strength 1 (proj)
        >>> round(errors["proj"], 3)
        0.707

    Source: Eckart and Young, 1936; https://arxiv.org/abs/0909.4061 for the randomised one.
    """
    if not isinstance(mixed, Mixable):
        raise AdapterError(
            f"to_lora got a {type(mixed).__name__}, expected an adapter or a mix. Write "
            "to_lora(mix(a, b), params)."
        )
    limit = checked_rank(rank)
    updates: dict[str, Update] = {}
    errors: dict[str, float] = {}
    for spot, (effect,) in effects([mixed], params, layout):
        own = None if key is None else site_key(key, spot.name)
        updates[spot.name], error = compressed(spot, effect, limit, own)
        if error is not None:
            errors[spot.name] = error
    own_name = mixed.name if isinstance(mixed, Adapter) else "lora"
    metadata = shared_metadata(part.metadata for part in mixed.parts)
    made = Adapter(updates, name=own_name if name is None else name, metadata=metadata)
    return (made, errors) if with_errors else made


def site_key(key: Array, site: str) -> Array:
    """A key of a site's own, the same whatever other sites there are."""
    return jax.random.fold_in(key, crc32(site.encode()))


def checked_rank(rank: Any) -> int | float | None:
    """A rank that makes sense.

    Args:
        rank: what the user said.

    Returns:
        A whole number from 1 on, a share between 0 and 1, or None for exact.

    Raises:
        AdapterError: if it is anything else.
    """
    if rank is None or (isinstance(rank, str) and rank == "exact"):
        return None
    is_number = isinstance(rank, int | float | np.generic | np.ndarray | jax.Array)
    if is_number and not isinstance(rank, Tracer) and np.ndim(rank) == 0:
        number = np.asarray(rank)
        if number.dtype.kind in "iu" and number >= 1:
            return int(number)
        if number.dtype.kind == "f" and 0 < number < 1:
            return float(number)
    raise AdapterError(
        f"a rank is {rank!r}, expected a whole number from 1 on, a share of the energy between 0 "
        "and 1, such as 0.99, or None for the effect's own."
    )


def compressed(
    spot: Spot, effect: Effect, rank: int | float | None, key: Array | None = None
) -> tuple[Update, Any]:
    """The update of low rank for an effect, and the relative error of its B A.

    Args:
        spot: the site.
        effect: what changes there.
        rank: as `to_lora` takes it, checked.
        key: for a randomised decomposition; None for an exact one.

    Returns:
        A LoRA, or a `Replace` where there is no matrix; the error is None then.
    """
    bias = effect.bias
    if effect.weight is None or spot.is_vector:
        assert effect.weight is None or spot.weight is not None
        new_bias = None if bias is None else _sum(spot.bias, bias)
        if effect.weight is None:
            return Replace(bias=new_bias), None
        return Replace(_sum(spot.weight, effect.weight.dense()[:, 0]), new_bias), None
    b, a, error = truncated(effect.weight, rank, key, effect.noise)
    update = LoRA(
        a,
        b,
        1.0,
        bias=bias,
        kernel=spot.kernel,
        embedding=spot.embedding,
        transposed=spot.transposed,
    )
    return update, error if isinstance(error, Tracer) else float(error)


def _sum(base: Array | None, moved: Array) -> Array:
    assert base is not None
    return base + moved
