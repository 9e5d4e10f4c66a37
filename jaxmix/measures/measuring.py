"""`measure`: measures what each adapter of a mix changes at each site, and how they interact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxmix.adapter import Adapter
from jaxmix.effects import Effect, effects
from jaxmix.measures.formulas import (
    Matrix,
    effective_rank,
    inner,
    on_host,
    overlap,
    principal_angles,
    shares,
    sign_agreement,
    singular_on_host,
)
from jaxmix.mixing import Mix, mix
from jaxmix.operators import Zero
from jaxmix.placement.layout import Layout

__all__ = ["Measures", "PairMeasures", "SiteMeasures", "measure"]

# The share of an effect's energy that its leading directions hold.
_ENERGY = 0.9


@dataclass(frozen=True)
class SiteMeasures:
    """Measures of one adapter at one site.

    Args:
        norm: The Frobenius norm ``‖Δ‖`` of the adapter alone on the base.
        rank: The effective rank of Δ.
        share: The share in the mix, ``⟨Wᵢ − Wᵢ₋₁, W' − W⟩ / ‖W' − W‖²``, where Wᵢ is the weight
            after the adapter. The shares at a site sum to 1. A negative share works against the
            mix.
    """

    norm: float
    rank: float
    share: float


@dataclass(frozen=True)
class PairMeasures:
    """Measures of two adapters' effects at one site.

    Args:
        cosine: ``⟨Δ₁, Δ₂⟩ / ‖Δ₁‖‖Δ₂‖``; below 0 they work against each other.
        signs: The share of entries with equal signs among those where neither is 0; 0.5 is chance.
            None if there are no such entries.
        outputs: The `overlap` of the leading column spaces, the outputs that they change.
        inputs: The `overlap` of the leading row spaces, the inputs that they read.
        output_angle: The smallest principal angle of the column spaces, in degrees.
        input_angle: The smallest principal angle of the row spaces, in degrees.
    """

    cosine: float
    signs: float | None
    outputs: float
    inputs: float
    output_angle: float
    input_angle: float


@dataclass(frozen=True)
class Measures:
    """The result of `measure`.

    Args:
        sites: ``{adapter: {site: SiteMeasures}}``, for sites whose weight the adapter changes.
        pairs: ``{(adapter, adapter): {site: PairMeasures}}``, for sites that both change.
        energies: ``{site: ‖W' − W‖²}`` of the whole mix.
    """

    sites: dict[str, dict[str, SiteMeasures]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[str, PairMeasures]] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)

    def norm(self, name: str) -> float:
        """Returns ``‖Δ‖`` of an adapter over all its sites."""
        return sum(site.norm**2 for site in self.sites[name].values()) ** 0.5

    def share(self, name: str) -> float:
        """Returns an adapter's share in the mix over all sites."""
        total = sum(self.energies.values())
        part = sum(
            site_measures.share * self.energies[site]
            for site, site_measures in self.sites[name].items()
        )
        return part / total if total else 0.0


def measure(
    mixed: Adapter | Mix,
    params: Any,
    *,
    layout: Layout | str | None = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Measures:
    """Measures the adapters of a mix at each site, each at its strength.

    Low-rank effects are measured with a QR of their factors and an SVD of the small core between
    them; other effects with an SVD of Δ.

    Args:
        mixed: An adapter or a mix.
        params: The base, any pytree of weights.
        layout: Where the sites are in the tree, as in `jaxmix.compose`.
        progress: A function called after each site, with the number of finished sites and the
            total.

    Returns:
        The measures. Changes of biases are ignored.

    Raises:
        LayoutError: As for `jaxmix.compose`.
        ShapeError: As for `jaxmix.compose`.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(np.ones((1, 2)), np.ones((3, 1)), 2.0)}, name="lora")
        >>> result = measure(0.5 * lora, {"proj.weight": np.zeros((3, 2), np.float32)})
        >>> lora = result.sites["lora"]["proj"]
        >>> round(lora.norm**2, 3), round(lora.rank, 3), round(lora.share, 3)
        (6.0, 1.0, 1.0)

    Source: Roy and Vetterli, 2007 (effective rank); Björck and Golub, 1973 (principal angles).
    """
    parts = mixed.parts
    measures = Measures(
        {part.name: {} for part in parts},
        {(a.name, b.name): {} for a, b in combinations(parts, 2)},
    )
    # Each adapter alone; and each with all previous ones, to compute the shares.
    groups = [*parts, *(mix(*parts[: i + 1]) for i in range(1, len(parts)))]
    count = len({site for part in parts for site in part.sites})
    for done, (spot, site_effects) in enumerate(effects(groups, params, layout), 1):
        alone = site_effects[: len(parts)]
        if alone[0].weight is not None:
            _at_site(measures, spot.name, parts, alone, (alone[0], *site_effects[len(parts) :]))
        # A fused module of an adapter may be several sites in the tree.
        progress(done, max(done, count))
    return measures


def _at_site(
    measures: Measures,
    site: str,
    parts: Sequence[Adapter],
    alone: Sequence[Effect],
    so_far: Sequence[Effect],
) -> None:
    """Adds the measures of a site to ``measures``."""
    steps = [_matrix(effect) for effect in so_far]
    shares_by_adapter = shares(steps)
    measures.energies[site] = inner(steps[-1], steps[-1])
    by_name: dict[str, _Directions] = {}
    for part, effect, share in zip(parts, alone, shares_by_adapter, strict=True):
        # Δ is Zero for an adapter that does not change the weight.
        if not isinstance(effect.weight, Zero):
            by_name[part.name] = directions = _directions(effect)
            norm = float(np.linalg.norm(directions.s))
            measures.sites[part.name][site] = SiteMeasures(
                norm, effective_rank(directions.s), share
            )
    for a, b in combinations(by_name, 2):
        measures.pairs[a, b][site] = _pair(by_name[a], by_name[b])


@dataclass(frozen=True)
class _Directions:
    """The SVD ``Δ = U Σ Vᵀ`` without values that are zero to rounding.

    ``leading`` is the number of directions that hold most of the energy.
    """

    delta: Matrix
    u: Float[np.ndarray, "out r"]
    s: Float[np.ndarray, " r"]
    v: Float[np.ndarray, "in r"]
    leading: int


def _directions(effect: Effect) -> _Directions:
    """Returns the singular directions of an effect."""
    delta = _matrix(effect)
    u, s, vt = singular_on_host(delta, effect.noise)
    held = np.cumsum(s**2)
    leading = 1 + int(np.sum(held < _ENERGY * held[-1]))
    return _Directions(delta, u, s, vt.T, min(leading, s.size))


def _matrix(effect: Effect) -> Matrix:
    """Returns an effect's Δ, which must exist."""
    assert effect.weight is not None
    return on_host(effect.weight)


def _pair(a: _Directions, b: _Directions) -> PairMeasures:
    """Returns the measures of two effects."""
    norms = float(np.linalg.norm(a.s)) * float(np.linalg.norm(b.s))
    columns, rows = (
        principal_angles(x[:, : a.leading], y[:, : b.leading]) for x, y in ((a.u, b.u), (a.v, b.v))
    )
    sizes, out_size, in_size = (a.leading, b.leading), len(a.u), len(a.v)
    return PairMeasures(
        inner(a.delta, b.delta) / norms if norms else 0.0,
        sign_agreement(a.delta, b.delta),
        overlap(columns, sizes, out_size),
        overlap(rows, sizes, in_size),
        float(np.rad2deg(columns[0])),
        float(np.rad2deg(rows[0])),
    )
