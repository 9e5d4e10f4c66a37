"""The options ``--rank 16`` and ``--energy 0.99``, which limit the rank of an SVD, and errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmix.converters.files.terminal import escape

if TYPE_CHECKING:  # help and shell completion do without JAX
    from jaxmix.low_rank import Rank as LoraRank

__all__ = ["Energy", "Rank", "error_lines", "rank_of"]

# The number of sites with the largest errors that are listed.
_SHOWN = 3

Rank = Annotated[
    int | None,
    typer.Option("--rank", "-r", min=1, metavar="RANK", help="The rank of the LoRA at each site."),
]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy",
        metavar="SHARE",
        help="Instead of a rank: the share of the effect's energy to keep at each site, with the "
        "smallest rank that does so: 0.99. 1 keeps the whole effect.",
    ),
]


def rank_of(rank: int | None, energy: float | None) -> "LoraRank":
    """Returns the ``rank`` argument of `jaxmix.to_lora`; None if neither option is given."""
    if rank is not None and energy is not None:
        raise typer.BadParameter("--rank and --energy exclude each other. Use one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise typer.BadParameter(
            f"--energy is {energy:g}, expected a number above 0 and at most 1."
        )
    return "exact" if energy == 1 else energy if rank is None else rank


def error_lines(errors: Mapping[str, float]) -> list[str]:
    """Describes the errors of a LoRA in lines; nothing if there are none."""
    if not errors:
        return []
    worst = sorted(errors, key=lambda site: -errors[site])[:_SHOWN]
    mean = sum(errors.values()) / len(errors)
    heading = f"error ‖Δ − BA‖ / ‖Δ‖: mean {mean:.2%}, largest"
    return [heading] + [f"  {errors[site]:.2%} at {escape(site)}" for site in worst]
