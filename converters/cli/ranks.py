"""``--rank 16`` or ``--energy 0.99``: how far a result made by SVD is cut."""

from typing import Annotated

import typer

from jaxmix.low_rank import Rank as LoraRank

__all__ = ["Energy", "Rank", "rank_of"]

Rank = Annotated[
    int | None,
    typer.Option("--rank", "-r", min=1, metavar="RANK", help="The rank of the LoRA at each site."),
]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy",
        metavar="SHARE",
        help="In place of a rank the share of the effect's energy that is to be kept at each site, "
        "by as small a rank as it takes: 0.99. For the whole effect: 1.",
    ),
]


def rank_of(rank: int | None, energy: float | None) -> LoraRank:
    """The rank as `jaxmix.to_lora` takes it; None if nothing was said."""
    if rank is not None and energy is not None:
        raise typer.BadParameter("--rank and --energy say the same thing in two ways. Give one.")
    if energy is not None and not 0 < energy <= 1:
        raise typer.BadParameter(f"--energy is {energy:g}, expected a share above 0 and at most 1.")
    return "exact" if energy == 1 else energy if rank is None else rank
