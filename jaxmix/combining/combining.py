"""`combine`: checks its arguments and chooses between combining factors and combining effects."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable, chains_by_site, checked_strength
from jaxmix.combining.deltas import combined_effect
from jaxmix.combining.factors import combined_factors, have_factors
from jaxmix.combining.formulas import MajoritySign
from jaxmix.combining.methods import Method, checked_options
from jaxmix.combining.overlap import check_overlap
from jaxmix.effects import Effect, Spot, effects, effects_of_loras, is_plain
from jaxmix.errors import AdapterError, ShapeError, listing, option, remedy
from jaxmix.families import Delta, LoRA, Update
from jaxmix.low_rank import Rank, checked_rank, compressed, site_key
from jaxmix.metadata import shared_metadata
from jaxmix.operators import LowRank
from jaxmix.placement import Resolved, resolve
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import OnTree, on_tree

__all__ = ["combine"]


def combine(
    adapters: Iterable[Mixable],
    params: Any = None,
    *,
    method: str,
    weights: Any = None,
    density: float | None = None,
    key: Array | None = None,
    rank: Rank = None,
    majority_sign: MajoritySign | None = None,
    outliers: float | None = None,
    layout: Layout | str | None = None,
    name: str = "combined",
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Adapter:
    """Combines several adapters into one, ``Δ = f(w₁Δ₁, …, wₙΔₙ)`` at each site.

    ============================== ===============================================================
    method                         f
    ============================== ===============================================================
    linear, svd, cat               ``Σ wᵢ Δᵢ``
    magnitude_prune, …_svd         the same with only the largest entries of each Δᵢ, a share of
                                   ``density``
    dare_linear, …_svd             the same with random entries, divided by the density (DARE)
    ties, …_svd                    keeps the largest entries of each, elects a sign for each
                                   position, and averages the entries with that sign (TIES)
    dare_ties, …_svd               DARE's random entries with TIES's election
    breadcrumbs                    ``Σ wᵢ Δᵢ`` without the largest (``outliers``) and the smallest
                                   entries
    sce                            keeps the entries with the largest variance, weights adapters by
                                   energy, erases minority signs; takes no weights
    model_stock                    ``t · mean(Δᵢ)``, with t from the angles between the Δᵢ; takes
                                   no weights
    slerp                          the arc from Δ₁ to Δ₂, at ``t = w₂/(w₁ + w₂)``
    knots                          TIES in the space spanned by the SVD of all Δᵢ
    ============================== ===============================================================

    LoRAs are combined as in PEFT's ``add_weighted_adapter``. linear, ties, dare_linear, dare_ties
    and magnitude_prune work on the factors, ``A = f(√|wᵢγᵢ| Aᵢ)`` and likewise for B. The result
    has a small rank but is not a sum of the Δᵢ. ``cat`` concatenates the factors. The ``svd``
    methods work on Δ and truncate it to a rank. For other families, several families, or mixes, Δᵢ
    is the effect ``W' − W`` on the given params, and all methods work on Δ. The last five methods
    always do. A site that an adapter does not touch counts as Δ = 0.

    Differences from PEFT:

    - A negative weight −w means the weight w for the negated adapter, which in TIES votes with its
      negated entries. PEFT 0.21 votes with the original entries. For the other methods both agree;
      older versions of PEFT lost the sign of factors (#3004).
    - ``lora_bias`` is combined like a Δ (PEFT drops it, #3761), and a DoRA by its effect (PEFT
      drops the magnitude).
    - A single adapter is combined by the given method (PEFT always uses linear).
    - Ranks may differ between sites (#3737).

    Differences from mergekit: its thresholds for full weights are not used, since they do not suit
    small differences. Model Stock gives zero if adapters point away from each other, where t would
    be negative or infinite. slerp interpolates between effects, not between weights.

    Args:
        adapters: Adapters and mixes, each at its strength.
        params: The base; not needed if all adapters are LoRAs. Without it, different names of one
            module can't be recognized, so each adapter must share sites with the others.
        method: One of the methods above.
        weights: A real number for each adapter; by default 1.
        density: The share of entries to keep, above 0 and at most 1.
        key: A PRNG key for random entries, and for a randomized SVD as in `jaxmix.to_lora`.
        rank: The rank of the result of an SVD, as for `jaxmix.to_lora`. By default, the svd methods
            of LoRAs use their largest rank; other svd methods require it. Other methods return a
            `Delta` without it.
        majority_sign: How a sign is elected: "total", the sign of the sum (the default), or
            "frequency", the most frequent sign.
        outliers: The share of largest entries that breadcrumbs drops, by default 0.01.
        layout: Where the sites are in the tree, as in `jaxmix.compose`.
        name: The name of the result.
        progress: Called after each site with the numbers of finished sites and of all sites.

    Returns:
        An adapter of strength 1: LoRAs of scale 1, A (r, in) and B (out, r), or Deltas (out, in).

    Raises:
        AdapterError: If an argument is not an adapter or a mix, the method is unknown, it lacks an
            option or does not use a given one, ranks differ where factors are added, or there are
            no params and an adapter shares no site with the others.
        LayoutError: As for `jaxmix.compose`.
        ShapeError: As for `jaxmix.compose`, or if LoRAs at a site belong to weights of different
            shapes.

    Warns:
        UserWarning: If there are no params, and sites of different adapters look like one module
            under two names.

    Example:
        >>> import jax.numpy as jnp
        >>> up = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="up")
        >>> combine([up, up], method="linear", weights=[0.75, 0.25])
        combined: LoRA rank 1 at 1 site, strength 1 (proj)

    Source: ``peft/tuners/lora/model.py`` and ``peft/utils/merge_utils.py``; https://arxiv.org/abs/
    2306.01708 (TIES), 2311.03099 (DARE), 2312.06795 (breadcrumbs), 2408.07990 (SCE), 2403.19522
    (Model Stock), 2410.19735 (KnOTS); github.com/arcee-ai/mergekit for the last four's definitions.
    """
    groups = _adapters(adapters)
    chosen, options = checked_options(
        method,
        len(groups),
        has_weights=weights is not None,
        has_rank=rank is not None,
        density=density,
        key=key,
        majority_sign=majority_sign,
        outliers=outliers,
    )
    group_weights = _weights(weights, chosen, len(groups))
    others = _other_updates(groups)
    metadata = shared_metadata(part.metadata for group in groups for part in group.parts)
    if chosen.on_factors and have_factors(groups):
        if rank is not None:
            raise AdapterError(
                f"the method {method!r} keeps the rank of LoRAs, but got {option('rank', rank)}. "
                f"Leave it out, or use {chosen.by_svd!r}."
            )
        if params is None:
            check_overlap(groups)
        _check_shapes(groups, params, layout)
        factors = combined_factors(groups, group_weights, chosen, options, key)
        return Adapter(factors, name=name, metadata=metadata)
    if params is None and others:
        raise AdapterError(
            f"combine got no base, but some updates are not LoRAs:{listing(others)}\n"
            "Only LoRAs can be combined without one: "
            f"{remedy('write combine(adapters, params, …)', 'pass --base BASE')}."
        )
    make = _maker(chosen, rank, groups, others)
    if params is None:
        check_overlap(groups)
        _check_shapes(groups)
    updates: dict[str, Update] = {}
    sites = effects_of_loras(groups) if params is None else effects(groups, params, layout)
    count = len({site for group in groups for part in group.parts for site in part.sites})
    for done, (spot, site_effects) in enumerate(sites, 1):
        keys: Any = (None, None) if key is None else jax.random.split(site_key(key, spot.name))
        effect = combined_effect(site_effects, group_weights, chosen, options, keys[0])
        updates[spot.name] = make(spot, effect, keys[1])
        progress(done, max(done, count))  # a fused module may be several sites in the tree
    return Adapter(updates, name=name, metadata=metadata)


def _adapters(adapters: Any) -> list[Mixable]:
    """Checks the adapters and returns them as a list."""
    if isinstance(adapters, Mixable | str | bytes | Mapping) or not isinstance(adapters, Iterable):
        raise AdapterError(
            f"combine got a single {type(adapters).__name__}, expected a list of adapters and "
            "mixes: combine([a, b], params, method=…)."
        )
    groups: list[Any] = list(adapters)
    wrong = [type(item).__name__ for item in groups if not isinstance(item, Mixable)]
    if wrong or not groups:
        found = f"a list with {', '.join(wrong)}" if wrong else "no adapters"
        raise AdapterError(f"combine got {found}, expected adapters and mixes.")
    return groups


def _weights(weights: Any, method: Method, count: int) -> list[Any]:
    """Checks the weights and returns one for each adapter."""
    if weights is None:
        return [1.0] * count
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list and getattr(weights, "ndim", 0) != 1:
        raise AdapterError(f"combine got weights={weights!r}, expected a list of real numbers.")
    if len(weights) != count:
        raise AdapterError(
            f"combine: the number of weights is {len(weights)}, expected {count}, one per adapter."
        )
    group_weights = [checked_strength(weight) for weight in weights]
    if method.name == "slerp" and (
        min(known := _known(group_weights), default=0) < 0 or not any(known)
    ):
        raise AdapterError(
            f"the method 'slerp' got the weights {known}, expected weights of at least 0 that are "
            "not both 0: it goes from the first adapter to the second, up to w₂/(w₁ + w₂)."
        )
    return group_weights


def _known(weights: Iterable[Any]) -> list[float]:
    """Returns the weights as floats; traced weights count as 1."""
    return [1.0 if isinstance(weight, Tracer) else float(weight) for weight in weights]


def _other_updates(groups: Sequence[Mixable]) -> list[str]:
    """Describes the updates that are not plain LoRAs."""
    return [
        f"{part.name}: {site} has {update.family}{'' if update.family != 'LoRA' else ' (DoRA)'}"
        for group in groups
        for part in group.parts
        for site, update in part.updates.items()
        if not is_plain(update)
    ]


def _resolved(params: Any, tree: OnTree[Adapter]) -> Resolved:
    return resolve(params, chains_by_site(tree.parts), tree.layout)


def _check_shapes(
    groups: Sequence[Mixable], params: Any = None, layout: Layout | str | None = None
) -> None:
    """Checks that all LoRAs at a site fit one weight, and with params the base's weight."""
    joint: dict[str, Any] = {}
    for group in groups:
        for site, chain in chains_by_site(group.parts).items():
            joint[site] = (*joint.get(site, ()), *chain)
    if params is not None:
        parts = [part for group in groups for part in group.parts]
        on_tree(partial(_resolved, params), parts, params, layout, None)
    shapes = {
        site: sorted({(update.b.shape[0], update.a.shape[1]) for _, update in chain})
        for site, chain in joint.items()
    }
    wrong = [
        f"{s}: {' and '.join(map(str, shapes_at))}"
        for s, shapes_at in shapes.items()
        if shapes_at[1:]
    ]
    if wrong:
        raise ShapeError(
            f"LoRAs at one site belong to weights of different shapes:{listing(wrong)}\nWere the "
            "adapters trained on one model?"
        )


Maker = Callable[[Spot, Effect, Array | None], Update]


def _maker(method: Method, rank: Rank, groups: Sequence[Mixable], others: Sequence[str]) -> Maker:
    """Returns a function from an effect to an update: a LoRA by SVD, its factors, or a Delta."""
    if rank is None and method.svd:
        if others:
            raise AdapterError(
                f"the method {method.name!r} got no rank, but some updates are not LoRAs:"
                f"{listing(others)}\nPass a rank such as {option('rank', 16)}, or a share of the "
                f"energy such as {option('rank', 0.99)}."
            )
        loras: list[Any] = [u for g in groups for part in g.parts for u in part.updates.values()]
        rank = max((update.a.shape[0] for update in loras), default=1)
    if rank is not None:
        limit = checked_rank(rank)
        return lambda spot, effect, key: compressed(spot, effect, limit, key)[0]
    return _from_factors if method.name == "cat" else _delta


def _delta(spot: Spot, effect: Effect, key: Array | None = None) -> Update:
    """Returns an effect as a Delta."""
    weight = None if effect.weight is None else spot.tensor(effect.weight.dense())
    return Delta(weight, effect.bias)


def _from_factors(spot: Spot, effect: Effect, key: Array | None = None) -> Update:
    """Returns an effect that is a product of factors as a LoRA; any other as a Delta."""
    delta = effect.weight
    if not isinstance(delta, LowRank) or spot.is_vector:
        return _delta(spot, effect)
    return LoRA(
        delta.a,
        delta.b,
        1.0,
        bias=effect.bias,
        kernel=spot.kernel,
        embedding=spot.embedding,
        transposed=spot.transposed,
    )
