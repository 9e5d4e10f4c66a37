"""PEFT's LoKr."""

from jaxmix.converters.peft.file import File
from jaxmix.converters.peft.kind import ABOUT, WHERE, Fields, Kind
from jaxmix.converters.peft.kinds.loha import LYCORIS, LYCORIS_HARMLESS
from jaxmix.converters.peft.shapes import Factor, Factors, check_cores, check_ranks, shapes
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import LoKr, Update

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """LoKr, its form told from the keys that are there."""
    rank = file.config.by_site("rank_pattern", "r", site)
    x, y = _side(factors, "lokr_w1"), _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    if core is not None and len(y) == 1:
        raise CheckpointError(f"lokr_t2 beside {shapes(factors)}: expected lokr_w2_a and lokr_w2_b")
    rows = 1 if core is None else 0
    axes = {"lokr_w1_a": (2, 1), "lokr_w1_b": (2, 0), "lokr_w2_a": (2, rows), "lokr_w2_b": (2, 0)}
    check_ranks(factors, axes, rank)
    check_cores(factors, ("lokr_t2",), rank)
    for name, side, most in (("lokr_w1", x, 2), ("lokr_w2", y, 5)):
        if len(side) == 1 and not 2 <= side[0].ndim <= most:
            raise ShapeError(f"{name} has shape {side[0].shape}, expected (rows, columns)")
    scale = file.config.by_site("alpha_pattern", "alpha", site) / rank
    return LoKr(x, y, scale, core)


def _side(factors: Factors, name: str) -> tuple[Factor, ...]:
    """A Kronecker factor: whole, or as a pair."""
    whole, pair = factors.get(name), [factors.get(name + end) for end in ("_a", "_b")]
    if whole is not None and pair == [None, None]:
        return (whole,)
    if whole is None and pair[0] is not None and pair[1] is not None:
        return pair[0], pair[1]
    raise CheckpointError(f"{shapes(factors)}: expected {name}, or {name}_a and {name}_b")


KIND = Kind(
    Fields(
        dict(LYCORIS),
        ABOUT
        | WHERE
        | LYCORIS_HARMLESS
        | frozenset("decompose_both decompose_factor rank_dropout_scale".split()),
    ),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    _build,
)
