"""Converts any mix to one LoRA by the singular value decomposition of its effects."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, overload
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable
from jaxmix.effects import ROWS, Effect, Spot, effects
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace, Update
from jaxmix.metadata import shared_metadata
from jaxmix.operators import Dense, LowRank, Operator, Zero
from jaxmix.placement.layout import Layout
from jaxmix.placement.tree import Tree
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
    progress: Callable[[int, int], None] = ...,
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
    progress: Callable[[int, int], None] = ...,
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
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Adapter | tuple[Adapter, dict[str, float]]:
    """Converts any adapter or mix to one LoRA: ``B A ≈ Δ = W' − W`` at each site, by SVD.

    Δ is the whole effect on these params, including rotations, scalings and norms, so the LoRA
    represents the mix for this base only. If all updates of a site have low rank (any number of
    LoRA, AdaLoRA, or LoHa of small ranks), Δ is never materialized: QR of the factors and the SVD
    of a small core give the same result. Otherwise Δ is dense, one site at a time, in float32, or
    in float64 for float64 params.

    Other changes are kept exactly: those of a bias as LoRA's ``bias``; a norm's weight, and the
    bias of an unchanged weight, as `Replace`.

    Args:
        mixed: An adapter or a mix; its strengths are included, and the result has strength 1.
        params: The base, any pytree of weights.
        rank: An integer r for all sites, A (r, in) and B (out, r), padded with zeros where the
            effect has a smaller rank; or a share of the energy (the sum of squares) between 0 and
            1, which each site keeps with the smallest rank that suffices; None or "exact" for the
            effect's own rank, up to rounding.
        key: A PRNG key. With a key and an integer rank, large dense effects (768 or more rows and
            columns, and a small rank) are decomposed by a randomised SVD, which is faster and close
            to the optimum. Without a key, each decomposition is exact.
        layout: Where the sites are in the tree, as in `jaxmix.compose`.
        name: The name of the result; by default the adapter's own; for a mix those of its parts,
            as in "style+light".
        with_errors: Whether to return the errors too.
        progress: A function called after each site, with the number of finished sites and the
            total.

    Returns:
        The adapter, with scale 1 at each site, so alpha is the rank. With ``with_errors`` a pair:
        the adapter, and ``{site: error}`` with ``‖Δ − B A‖ / ‖Δ‖`` (Frobenius norm, without
        rounding) of each LoRA.

    Raises:
        AdapterError: If ``mixed`` is not an adapter, or the rank is invalid.
        LayoutError: As for `jaxmix.compose`.
        ShapeError: As for `jaxmix.compose`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import OFT
        >>> rotation = Adapter({"proj": OFT(jnp.ones((2, 1)))}, name="rotation")
        >>> params = {"proj.weight": jnp.eye(4)}
        >>> lora, errors = to_lora(rotation, params, rank=2, with_errors=True)
        >>> lora
        rotation: LoRA rank 2 at 1 site, strength 1 (proj)
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
    count = len({site for part in mixed.parts for site in part.sites})
    all_effects = _with_joined_rows(effects([mixed], params, layout), params)
    for done, (spot, effect) in enumerate(all_effects, 1):
        own = None if key is None else site_key(key, spot.name)
        updates[spot.name], error = compressed(spot, effect, limit, own)
        if error is not None:
            errors[spot.name] = error
        # A fused module of an adapter may be several sites in the tree.
        progress(done, max(done, count))
    own_name = "+".join(part.name for part in mixed.parts) or "lora"
    metadata = shared_metadata(part.metadata for part in mixed.parts)
    lora = Adapter(updates, name=own_name if name is None else name, metadata=metadata)
    return (lora, errors) if with_errors else lora


def _with_joined_rows(
    all_effects: Iterable[tuple[Spot, tuple[Effect, ...]]], params: Any
) -> Iterator[tuple[Spot, Effect]]:
    """The effects of one mix, with those at rows of one leaf joined."""
    parts: dict[str, dict[int, tuple[Spot, Effect]]] = {}
    for spot, (effect,) in all_effects:
        if (match := ROWS.fullmatch(spot.name)) is None:
            yield spot, effect
        else:
            parts.setdefault(match[1], {})[int(match[2])] = spot, effect
    tree = Tree.of(params) if parts else None
    for module, at_rows in parts.items():
        assert tree is not None
        leaf = next(name for name in (f"{module}.weight", module) if name in tree.positions)
        rows = np.shape(tree.leaves[tree.positions[leaf]])[0]
        spot, _ = next(iter(at_rows.values()))
        yield (
            replace(spot, name=module),
            _joined([at_rows[start] for start in sorted(at_rows)], rows),
        )


def _joined(parts: Sequence[tuple[Spot, Effect]], rows: int) -> Effect:
    """Joins the effects on rows of a leaf, in order, into the effect on the leaf."""
    columns = next(x.weight.shape[1] for _, x in parts if x.weight is not None)
    moved = next((effect.bias for _, effect in parts if effect.bias is not None), None)
    weights: list[Operator] = []
    biases: list[Array] = []
    at, noise = 0, 0.0
    for spot, effect in parts:
        match = ROWS.fullmatch(spot.name)
        assert match is not None
        start, stop = int(match[2]), int(match[3])
        weights += [Zero(start - at, columns), effect.weight or Zero(stop - start, columns)]
        if moved is not None:
            none = jnp.zeros(stop - start, moved.dtype) if effect.bias is None else effect.bias
            biases += [jnp.zeros(start - at, moved.dtype), none]
        at, noise = stop, jnp.maximum(noise, effect.noise)
    weights.append(Zero(rows - at, columns))
    if moved is not None:
        biases.append(jnp.zeros(rows - at, moved.dtype))
    return Effect(_stacked(weights), jnp.concatenate(biases) if biases else None, noise)


def _stacked(operators: Sequence[Operator]) -> Operator:
    """Stacks matrices vertically, as a low rank if all of them are."""
    dense = [x.dense() for x in operators if not isinstance(x, Zero | LowRank)]
    if dense:
        dtype = dense[0].dtype
        rows = [
            jnp.zeros(x.shape, dtype) if isinstance(x, Zero) else x.dense().astype(dtype)
            for x in operators
        ]
        return Dense(jnp.concatenate(rows))
    if not any(isinstance(operator, LowRank) for operator in operators):
        return Zero(sum(operator.shape[0] for operator in operators), operators[0].shape[1])
    a = jnp.concatenate([operator.a for operator in operators if isinstance(operator, LowRank)])
    b = jnp.zeros((sum(operator.shape[0] for operator in operators), a.shape[0]), a.dtype)
    top = left = 0
    for operator in operators:
        if isinstance(operator, LowRank):
            rank = operator.a.shape[0]
            b = b.at[top : top + operator.shape[0], left : left + rank].set(operator.b)
            left += rank
        top += operator.shape[0]
    return LowRank(b, a)


def site_key(key: Array, site: str) -> Array:
    """Returns a site's own PRNG key, which does not depend on the other sites."""
    return jax.random.fold_in(key, crc32(site.encode()))


def checked_rank(rank: Any) -> int | float | None:
    """Checks a rank.

    Args:
        rank: The user's argument.

    Returns:
        A positive integer, a share between 0 and 1, or None for exact.

    Raises:
        AdapterError: If it is anything else.
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
        f"a rank is {rank!r}, expected a positive integer, a share of the energy between 0 and 1, "
        "such as 0.99, or None for the effect's own."
    )


def compressed(
    spot: Spot, effect: Effect, rank: int | float | None, key: Array | None = None
) -> tuple[Update, Any]:
    """Returns a low-rank update for an effect, and the relative error of its B A.

    Args:
        spot: The site.
        effect: The effect at the site.
        rank: As in `to_lora`, checked.
        key: For a randomised decomposition; None for an exact one.

    Returns:
        A LoRA, or a `Replace` with an error of None if the effect is not a matrix.
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
