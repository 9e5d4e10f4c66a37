"""The options ``--rank 16`` and ``--energy 0.99``, which limit the rank of an SVD."""

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
        help="Instead of a rank: the share of the effect's energy to keep at each site, with the "
        "smallest rank that does so: 0.99. 1 keeps the whole effect.",
    ),
]


def rank_of(rank: int | None, energy: float | None) -> LoraRank:
    """Returns the ``rank`` argument of `jaxmix.to_lora`; None if neither option is given."""
    if rank is not None and energy is not None:
        raise typer.BadParameter("--rank and --energy exclude each other. Use one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise typer.BadParameter(
            f"--energy is {energy:g}, expected a number above 0 and at most 1."
        )
    return "exact" if energy == 1 else energy if rank is None else rank
