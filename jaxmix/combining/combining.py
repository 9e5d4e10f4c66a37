"""`combine`: its arguments, and which way the adapters are combined."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable, checked_strength, words
from jaxmix.combining.deltas import combined_effect
from jaxmix.combining.factors import combined_factors, have_factors
from jaxmix.combining.formulas import MajoritySign
from jaxmix.combining.methods import Method, checked_options
from jaxmix.combining.overlap import check_overlap
from jaxmix.effects import Effect, Spot, effects, effects_of_loras, is_plain
from jaxmix.errors import AdapterError, ShapeError, listing
from jaxmix.families import Delta, LoRA, Update
from jaxmix.low_rank import Rank, checked_rank, compressed, site_key
from jaxmix.metadata import shared_metadata
from jaxmix.operators import LowRank
from jaxmix.placement import resolve
from jaxmix.placement.layout import Layout

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
) -> Adapter:
    """Several adapters as one, ``Δ = f(w₁Δ₁, …, wₙΔₙ)`` at each site.

    ============================== ===============================================================
    method                         f
    ============================== ===============================================================
    linear, svd, cat               ``Σ wᵢ Δᵢ``
    magnitude_prune, …_svd         the same of each one's largest entries (``density`` of them)
    dare_linear, …_svd             the same of random entries, divided by the density (DARE)
    ties, …_svd                    each one's largest entries; a sign is elected for each place,
                                   and those that have it are averaged (TIES)
    dare_ties, …_svd               DARE's entries, TIES's election
    breadcrumbs                    ``Σ wᵢ Δᵢ`` of the entries left when the largest (``outliers``)
                                   and the smallest are gone
    sce                            the entries that differ most, weighed by energy, the outvoted
                                   ones erased; no weights
    model_stock                    ``t · mean(Δᵢ)``, t by the angles between them; no weights
    slerp                          the arc from Δ₁ to Δ₂, at ``t = w₂/(w₁ + w₂)``
    knots                          TIES in the space that the SVD of all of them spans
    ============================== ===============================================================

    LoRAs alone are combined as PEFT's ``add_weighted_adapter`` does it: linear, ties, dare_linear,
    dare_ties and magnitude_prune work on the factors, ``A = f(√|wᵢγᵢ| Aᵢ)`` and the same for B,
    which is no sum of Δ's but small; ``cat`` lays the factors side by side; the ``svd`` methods
    work on Δ and cut to a rank. For other kinds, or several kinds, or mixes, Δᵢ is the effect
    ``W' − W`` on these params, and all methods work on Δ; so do the last five always. A site that
    an adapter does not touch counts as Δ = 0.

    Where PEFT differs: a weight −w is the weight w of the negated adapter, which in TIES votes with
    its negated entries (PEFT 0.21 lets it vote with the entries as they were; for the other methods
    both agree, whereas older ones lost the sign of factors, PEFT #3004). ``lora_bias`` is combined
    as a Δ is (PEFT drops it, #3761). A DoRA is taken by its effect (PEFT drops its magnitude). One
    adapter alone is combined by the method that is asked for (PEFT takes linear). Ranks may differ
    from site to site (#3737).

    Where mergekit differs: thresholds that presume whole weights, and not small differences of
    them, are not taken over; Model Stock leaves nothing where adapters point away from each other
    (there t is negative or infinite); slerp is between effects and not between weights.

    Args:
        adapters: adapters and mixes, each at its strength.
        params: the base; not needed where all are LoRAs. Without it nothing tells whether two
            names are one module, so each adapter has to share sites with the others.
        method: one of the above.
        weights: a real number for each; 1 for each by default.
        density: the share of entries that are kept, above 0 and at most 1.
        key: a PRNG key: for what is random, and for a randomised SVD as in `jaxmix.to_lora`.
        rank: the rank of the result where it is made by SVD, as `jaxmix.to_lora` takes it. By
            default the svd methods of LoRAs take the largest rank among them; other svd methods
            need it, and other methods give a `Delta` without it.
        majority_sign: what elects a sign: "total", the sign of the sum (by default), or
            "frequency", the sign of most.
        outliers: the share of entries that breadcrumbs drops as too large, 0.01 by default.
        layout: where the sites lie in the tree, as in `jaxmix.compose`.
        name: the name of the result.

    Returns:
        An adapter of strength 1: LoRAs of scale 1, A (r, in) and B (out, r), or Deltas (out, in).

    Raises:
        AdapterError: if something is no adapter, there is no such method, it lacks something or has
            no use for it, ranks differ where factors are added up, or there are no params and an
            adapter shares no site with the others.
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`, or if LoRAs are for weights of several shapes.

    Warns:
        UserWarning: if there are no params, and sites of different adapters look like one module
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
    found, options = checked_options(
        method,
        len(groups),
        has_weights=weights is not None,
        has_rank=rank is not None,
        density=density,
        key=key,
        majority_sign=majority_sign,
        outliers=outliers,
    )
    each = _weights(weights, found, len(groups))
    strangers = _strangers(groups)
    metadata = shared_metadata(part.metadata for group in groups for part in group.parts)
    if found.on_factors and have_factors(groups):
        if rank is not None:
            raise AdapterError(
                f"the method {method!r} keeps the rank of LoRAs and got rank={rank!r}. Leave it "
                f"out, or choose {found.by_svd!r}."
            )
        if params is None:
            check_overlap(groups)
        _check_shapes(groups, params, layout)
        factors = combined_factors(groups, each, found, options, key)
        return Adapter(factors, name=name, metadata=metadata)
    if params is None and strangers:
        raise AdapterError(
            f"combine got no params, and adapters that are no LoRAs:{listing(strangers)}\nOnly "
            "LoRAs can be combined without their base: write combine(adapters, params, …)."
        )
    make = _maker(found, rank, groups, strangers)
    if params is None:
        check_overlap(groups)
        _check_shapes(groups)
    updates: dict[str, Update] = {}
    sites = effects_of_loras(groups) if params is None else effects(groups, params, layout)
    for spot, own in sites:
        keys: Any = (None, None) if key is None else jax.random.split(site_key(key, spot.name))
        effect = combined_effect(own, each, found, options, keys[0])
        updates[spot.name] = make(spot, effect, keys[1])
    return Adapter(updates, name=name, metadata=metadata)


def _adapters(adapters: Any) -> list[Mixable]:
    """The adapters, each of them one."""
    if isinstance(adapters, Mixable | str | bytes | Mapping) or not isinstance(adapters, Iterable):
        raise AdapterError(
            f"combine got one {type(adapters).__name__}, expected a list of adapters and mixes: "
            "combine([a, b], params, method=…)."
        )
    groups: list[Any] = list(adapters)
    wrong = [type(one).__name__ for one in groups if not isinstance(one, Mixable)]
    if wrong or not groups:
        found = f"something that is none: {', '.join(wrong)}" if wrong else "no adapters"
        raise AdapterError(f"combine got {found}, expected adapters and mixes.")
    return groups


def _weights(weights: Any, method: Method, count: int) -> list[Any]:
    """A weight for each adapter."""
    if weights is None:
        return [1.0] * count
    several = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not several and getattr(weights, "ndim", 0) != 1:
        raise AdapterError(f"combine got weights={weights!r}, expected a list of real numbers.")
    if len(weights) != count:
        raise AdapterError(
            f"combine got {len(weights)} weights for {count} adapters, expected one for each."
        )
    each = [checked_strength(weight) for weight in weights]
    if method.name == "slerp" and (min(known := _known(each), default=0) < 0 or not any(known)):
        raise AdapterError(
            f"the method 'slerp' got weights={weights!r}, expected none below 0, and not both 0: "
            "the way goes from the first adapter to the second, to w₂/(w₁ + w₂) of it."
        )
    return each


def _known(weights: Iterable[Any]) -> list[float]:
    """The weights as numbers; those that are traced count as 1."""
    return [1.0 if isinstance(weight, Tracer) else float(weight) for weight in weights]


def _strangers(groups: Sequence[Mixable]) -> list[str]:
    """What is no LoRA, in words."""
    return [
        f"{part.name}: {site} has {update.family}{'' if update.family != 'LoRA' else ' (DoRA)'}"
        for group in groups
        for part in group.parts
        for site, update in part.updates.items()
        if not is_plain(update)
    ]


def _check_shapes(
    groups: Sequence[Mixable], params: Any = None, layout: Layout | str | None = None
) -> None:
    """That LoRAs at a site are for one weight, and with params for the one that is there."""
    joint: dict[str, Any] = {}
    for group in groups:
        for site, word in words(group.parts).items():
            joint[site] = (*joint.get(site, ()), *word)
    if params is not None:
        resolve(params, joint, layout)
    shapes = {
        site: sorted({(update.b.shape[0], update.a.shape[1]) for _, update in word})
        for site, word in joint.items()
    }
    wrong = [f"{s}: {' and '.join(map(str, found))}" for s, found in shapes.items() if found[1:]]
    if wrong:
        raise ShapeError(
            f"LoRAs at one site that are for weights of several shapes:{listing(wrong)}\nWere the "
            "adapters trained on one model?"
        )


Maker = Callable[[Spot, Effect, Array | None], Update]


def _maker(
    method: Method, rank: Rank, groups: Sequence[Mixable], strangers: Sequence[str]
) -> Maker:
    """What makes an update of an effect: a LoRA by SVD, the factors as they are, or a Delta."""
    if rank is None and method.svd:
        if strangers:
            raise AdapterError(
                f"the method {method.name!r} got no rank, and adapters that have none:"
                f"{listing(strangers)}\nGive rank=16, another, or a share of the energy such as "
                "0.99."
            )
        loras: list[Any] = [u for g in groups for part in g.parts for u in part.updates.values()]
        rank = max((update.a.shape[0] for update in loras), default=1)
    if rank is not None:
        limit = checked_rank(rank)
        return lambda spot, effect, key: compressed(spot, effect, limit, key)[0]
    return _side_by_side if method.name == "cat" else _delta


def _delta(spot: Spot, effect: Effect, key: Array | None = None) -> Update:
    """An effect as it is."""
    weight = None if effect.weight is None else spot.tensor(effect.weight.dense())
    return Delta(weight, effect.bias)


def _side_by_side(spot: Spot, effect: Effect, key: Array | None = None) -> Update:
    """An effect that is a product of factors as a LoRA of these factors."""
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
