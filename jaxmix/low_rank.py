"""Any mix as one LoRA: the singular value decomposition of what it changes at each site."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxmix.adapter import Adapter, Mixable
from jaxmix.effects import Effect, Spot, effects, low_rank_of
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace, Update
from jaxmix.layout import Layout
from jaxmix.operators import LowRank, Operator

__all__ = ["Rank", "checked_rank", "compressed", "decomposed", "to_lora"]

Rank = int | float | Literal["exact"] | None

# A randomised decomposition is used from this size on, if a key is given. Below, an exact one of a
# matrix takes less than a second on two cores.
LARGE = 768
# Halko, Martinsson, Tropp: a few more directions than asked for, and a few power iterations.
_OVERSAMPLING = 10
_ITERATIONS = 4


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
        pair: the adapter, and ``{site: error}`` with ``‖Δ − B A‖ / ‖Δ‖`` (Frobenius) of each LoRA,
        as floats that a writer can put into a file's metadata.

    Raises:
        AdapterError: if ``mixed`` is no adapter, or the rank is none of these.
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`.

    Example:
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
    rank = checked_rank(rank)
    updates: dict[str, Update] = {}
    errors: dict[str, float] = {}
    for i, (spot, (effect,)) in enumerate(effects([mixed], params, layout)):
        own = None if key is None else jax.random.fold_in(key, i)
        updates[spot.name], error = compressed(spot, effect, rank, own)
        if error is not None:
            errors[spot.name] = error
    own_name = mixed.name if isinstance(mixed, Adapter) else "lora"
    made = Adapter(updates, name=own_name if name is None else name)
    return (made, errors) if with_errors else made


def checked_rank(rank: Any) -> Rank:
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
    is_whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if is_whole or (isinstance(rank, float) and 0 < rank < 1):
        return rank
    raise AdapterError(
        f"a rank is {rank!r}, expected a whole number from 1 on, a share of the energy between 0 "
        "and 1, such as 0.99, or None for the effect's own."
    )


def compressed(
    spot: Spot, effect: Effect, rank: Rank, key: Array | None = None
) -> tuple[Update, float | None]:
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
    b, a, error = decomposed(effect.weight, rank, key, effect.noise)
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


def decomposed(
    delta: Operator, rank: Rank, key: Array | None = None, noise: Any = 0.0
) -> tuple[Float[Array, "out r"], Float[Array, "r in"], Any]:
    """``B A ≈ Δ`` of the rank asked for, the singular values shared evenly, and its error.

    Args:
        delta: Δ (out, in).
        rank: as `to_lora` takes it, checked.
        key: for a randomised decomposition; None for an exact one.
        noise: how large rounding alone may make a singular value of Δ.

    Returns:
        B (out, r), A (r, in), and ``‖Δ − B A‖ / ‖Δ‖``.
    """
    with jax.default_matmul_precision("highest"):
        if (thin := low_rank_of(delta)) is not None:
            u, s, vt = _thin_svd(thin)
        else:
            matrix = _dense(delta)
            if key is not None and isinstance(rank, int) and _is_large(matrix.shape, rank):
                return _randomised(matrix, rank, key)
            u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
        squares = jnp.concatenate([jnp.cumsum((s**2)[::-1])[::-1], jnp.zeros_like(s[:1])])
        kept = _kept(rank, s, squares, noise, delta.shape)
        error = jnp.sqrt(squares[min(kept, s.size)] / jnp.where(squares[0] > 0, squares[0], 1))
        return *_shared(u, s, vt, kept), error


def _kept(rank: Rank, s: Array, tails: Array, noise: Any, shape: tuple[int, int]) -> int:
    """How many singular values to keep; ``tails`` are the sums of squares from each one on."""
    if isinstance(rank, int):
        return rank
    if rank is None:
        own = max(shape) * jnp.finfo(s.dtype).eps * jnp.max(s, initial=0)
        return max(1, int(jnp.sum(s > jnp.maximum(own, noise))))
    assert isinstance(rank, float)
    return max(1, int(jnp.sum(tails[:-1] > (1 - rank) * tails[0])))


def _shared(u: Array, s: Array, vt: Array, kept: int) -> tuple[Array, Array]:
    """``B = U √Σ`` and ``A = √Σ Vᵀ``, cut or filled with zeros."""
    root = jnp.sqrt(s[:kept])
    b, a = u[:, :kept] * root[None, :], root[:, None] * vt[:kept]
    more = kept - root.size
    return jnp.pad(b, ((0, 0), (0, more))), jnp.pad(a, ((0, more), (0, 0)))


def _thin_svd(delta: LowRank) -> tuple[Array, Array, Array]:
    """The SVD of ``B A`` by QR of both factors and the SVD of the small core between them."""
    q_b, r_b = jnp.linalg.qr(delta.b)
    q_a, r_a = jnp.linalg.qr(delta.a.T)
    u, s, vt = jnp.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vt @ q_a.T


def _dense(delta: Operator) -> Float[Array, "out in"]:
    """Δ itself."""
    return delta.dense()


def _is_large(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a randomised decomposition is the faster one by far."""
    return min(shape) >= LARGE and 4 * (rank + _OVERSAMPLING) <= min(shape)


def _randomised(matrix: Array, rank: int, key: Array) -> tuple[Array, Array, Array]:
    """The SVD within the range of a few random products of Δ, and the error that was made."""
    size = (matrix.shape[1], rank + _OVERSAMPLING)
    q, _ = jnp.linalg.qr(matrix @ jax.random.normal(key, size, matrix.dtype))
    for _ in range(_ITERATIONS):
        back, _ = jnp.linalg.qr(matrix.T @ q)
        q, _ = jnp.linalg.qr(matrix @ back)
    u, s, vt = jnp.linalg.svd(q.T @ matrix, full_matrices=False)
    b, a = _shared(q @ u, s, vt, rank)
    norm = jnp.linalg.norm(matrix)
    return b, a, jnp.linalg.norm(matrix - b @ a) / jnp.where(norm > 0, norm, 1)
