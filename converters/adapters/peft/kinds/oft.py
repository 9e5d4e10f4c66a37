"""PEFT's OFT, and the variants that older versions of PEFT wrote under this name."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.converters.adapters.common.values import ANY, BOUND, FLAG, TERMS, Check, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing, to_lora_call
from jaxmix.families import OFT, DiagOFT, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """OFT; the size of blocks is that of the tensor."""
    if "oft_r" in factors:
        return _before_016(file, site, factors)
    if len(factors) != 1 or "oft_s" in factors:
        raise CheckpointError(f"{describe_shapes(factors)}: expected one of them")
    if missing := [name for name in _NEEDED if file.config.values.get(name) is None]:
        raise CheckpointError(
            f"the config has no {', '.join(missing)}, which an OFT of {', '.join(factors)} needs"
        )
    ((name, generator),) = factors.items()
    numbers = generator.shape[-1] if generator.ndim == 2 else -1
    block = round((1 + math.sqrt(1 + 8 * max(numbers, 0))) / 2)
    if block * (block - 1) // 2 != numbers:
        raise ShapeError(f"{describe_shapes(factors)}, expected (blocks, b(b − 1)/2)")
    if file.config.flag("block_share") and generator.shape[0] != 1:
        raise ShapeError(f"{describe_shapes(factors)}, expected one block: block_share is true")
    series, values = file.config.flag("use_cayley_neumann"), file.config.values
    return OFT(
        generator,
        terms=values["num_cayley_neumann_terms"] if series else None,
        eps=float(values["eps"]) if file.config.flag("coft") else None,
        embedding=name == "oft_embedding_R.weight",
        # The config states the version only since 0.18.
        ends_twice=series and _numbers(values.get("peft_version")) < (0, 18),
    )


def _before_016(file: File, site: str, factors: SiteTensors) -> Update:
    """The OFT of peft up to 0.13, which rotates outputs, or of 0.14 and 0.15, with a rescaling."""
    blocks, rescale = factors["oft_r"], factors.get("oft_s")
    shape, values = blocks.shape, file.config.values
    is_shared = file.config.flag("block_share")
    is_square = len(shape) == 3 and shape[1] == shape[2] and blocks.size > 0
    if len(factors) > 2 or not is_square or (is_shared and len(blocks) > 1):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected ({1 if is_shared else 'blocks'}, b, b)"
        )
    size, eps = shape[1], values.get("eps")
    eps = 6e-5 if eps is None else float(eps)
    if rescale is None:
        bound = eps * size**2 / len(blocks) ** 0.5
        return DiagOFT(blocks, None, bound if values.get("coft") else None, -0.5, "out", True)
    if rescale.ndim != 2 or rescale.shape[1] != 1:
        raise ShapeError(f"{describe_shapes(factors)}, expected oft_s (out, 1)")
    bound = None
    if values.get("coft"):
        count = len(blocks)
        if is_shared:
            count = math.prod(file.shape(site)[1:]) // size
        bound = eps * math.ceil(len(rescale) / count) ** 2 / len(blocks) ** 0.5
    return DiagOFT(blocks, rescale[:, 0], bound, 0.5, "in", True)


def _sizes(generator_sizes: Mapping[str, tuple[int, int]], is_shared: bool) -> dict[str, int]:
    """The ``oft_block_size`` or ``r`` from which PEFT computes the blocks of each site."""
    counts, sizes = ({pair[i] for pair in generator_sizes.values()} for i in (0, 1))
    if is_shared and len(sizes) == 1:
        return {"r": 0, "oft_block_size": sizes.pop()}
    for size in range(min(sizes), max(sizes) + 1):
        if not is_shared and all(_adjusted(n * b, size) == b for n, b in generator_sizes.values()):
            return {"r": 0, "oft_block_size": size}
    for r in range(min(counts), max(counts) + 1):
        if all(_adjusted(n * b, r) == n for n, b in generator_sizes.values()):
            return {"r": r, "oft_block_size": 0}
    lines = (f"{site}: {n} blocks of {b}" for site, (n, b) in generator_sizes.items())
    raise UnsupportedError(
        f"PEFT has no oft_block_size and no r for these blocks:{listing(lines)}\nExport them as "
        f"separate adapters, or as a LoRA: {to_lora_call()}."
    )


def _adjusted(size: int, target: int) -> int:
    """The divisor of a size that is nearest to a number, as in PEFT."""
    if target >= size:
        return size
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: (abs(d - target), d))


def _numbers(version: Any) -> tuple[int, ...]:
    """The leading numbers of a version; an absent one is the oldest."""
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the size of blocks or their number: PEFT's config has one of them for all sites."""
    generator_sizes = {site: (up.generator.shape[0], up.block_size) for site, up in updates.items()}
    is_shared = all(count == 1 for count, _ in generator_sizes.values())
    size = _sizes(generator_sizes, is_shared)
    is_shared &= size["r"] != 1
    refuse_unless(
        updates, lambda up: not up.ends_twice, "PEFT 0.18 and later has another series than these"
    )
    refuse_unless(
        updates,
        lambda up: not up.transposed,
        "PEFT's OFT does not accept layers stored as (in, out)",
    )
    terms = equal_value(updates, "num_cayley_neumann_terms", lambda update: update.terms)
    eps = equal_value(updates, "eps", lambda u: None if u.eps is None else as_float(u.eps))
    fields = {
        **size,
        "block_share": is_shared,
        "coft": eps is not None,
        "eps": 6e-5 if eps is None else eps,
        "num_cayley_neumann_terms": 5 if terms is None else terms,
        "use_cayley_neumann": terms is not None,
    }
    names = {True: "oft_embedding_R.weight", False: "oft_R.weight"}
    return PeftContent(
        fields, {f"{site}.{names[up.embedding]}": up.generator for site, up in updates.items()}
    )


# Older configs do not have these.
_NEEDED = ("use_cayley_neumann", "num_cayley_neumann_terms", "eps")
_BOUND = Check(BOUND.description, BOUND.holds, False)
# The size of blocks is that of the tensor: PEFT adjusts `r` and `oft_block_size` to divisors. It
# accepts no layer that is stored transposed, and sets `fan_in_fan_out` to False itself.
PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "bias": one_of("none", "all", "oft_only"),
            "block_share": FLAG,
            "coft": FLAG,
            "eps": _BOUND,
            "num_cayley_neumann_terms": TERMS,
            "oft_block_size": ANY,
            "peft_version": ANY,
            "use_cayley_neumann": FLAG,
            **SAVED,
        },
        (ABOUT - {"peft_version"})
        | WHERE
        | frozenset(
            "alpha_pattern fan_in_fan_out init_weights module_dropout r rank_pattern".split()
        ),
    ),
    ("oft_R.weight", "oft_embedding_R.weight", "oft_r", "oft_s"),
    _build,
    _write,
)
