"""Heads of base checkpoints that share the embedding's tensor: found, and given one of their own.

PEFT's forward changes only the side of the two that has the adapter (see `placement.tied`). So a
merged checkpoint needs both tensors, and a config that no longer ties them.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from jaxmix.adapter import words
from jaxmix.converters.checkpoints.huggingface import Checkpoint
from jaxmix.converters.merging.rewriting import with_config, with_copy
from jaxmix.errors import LayoutError, listing, option
from jaxmix.families import Update, parts_of
from jaxmix.mixing import Mix, mix
from jaxmix.placement.names import bare
from jaxmix.placement.tied import bias_alone, trained_as_one
from jaxmix.placement.ties import Ties

__all__ = ["untied"]

_HEAD = "lm_head.weight"
_FLAG = "tie_word_embeddings"


def untied(
    checkpoint: Checkpoint, mixed: Mix, *, allowed: bool
) -> tuple[Checkpoint, Mix, str | None]:
    """The checkpoint with a head of its own, if the mix changes an embedding that is also the head.

    Where the mix does the same to both, as after PEFT's ``ensure_weight_tying``, they stay tied.

    Args:
        checkpoint: the base.
        mixed: the adapters.
        allowed: whether to untie; if not, a mix that needs it is an error.

    Returns:
        The checkpoint to work on, the mix without sites that the checkpoint has no tensor for since
        another's is theirs, and the name of the head that was untied; None if nothing was.

    Raises:
        LayoutError: if the mix needs an untied checkpoint and this is not allowed, or not possible.
    """
    tensors = list(checkpoint.tensors)
    without_head = [name for name in tensors if bare(name) != _HEAD]
    sites = filter(_is_outside_layers, _weight_sites(mixed))
    ties = Ties.of(without_head)
    problems = {site: told for site in sites if (told := ties.problem(site))}
    if not problems or not _is_tied(checkpoint, tensors):
        return checkpoint, mixed, None
    as_one, copies = trained_as_one(words(mixed.parts), without_head, ties)
    if as_one.issuperset(problems):
        return checkpoint, _without(mixed, copies.difference(_modules(tensors)), tensors), None
    if not allowed:
        raise LayoutError(
            f"sites whose tensor {checkpoint.name} ties to another:{listing(problems.values())}\n"
            f"{option('untie')} does so in the output: it writes {_HEAD} as "
            f"a tensor of its own and sets {_FLAG} to false in config.json."
        )
    tokens = {s for s, up in _updates(mixed) if any(part.keeps_tie for part in parts_of(up))}
    if tokens:
        raise LayoutError(
            "an adapter trained tokens, which changes both sides of a tied embedding, and another "
            f"changes one side of it:{listing([*tokens, *problems])}\nMerge one after the other."
        )
    if without_head == tensors:
        checkpoint = with_copy(checkpoint, _HEAD, of=_embedding(checkpoint, problems))
    return with_config(checkpoint, _untied_fields(checkpoint)), mixed, _HEAD


def _without(mixed: Mix, sites: frozenset[str], tensors: Collection[str]) -> Mix:
    """The mix without some sites' weights."""
    parts = []
    for part in mixed.parts:
        updates = {site: up for site, up in part.updates.items() if site not in sites}
        for site in sites & part.updates.keys():
            owner, bias = bias_alone(site, part.updates[site], tensors)
            if owner is not None and bias is not None:
                updates[owner] = bias
        parts.append(replace(part, updates=updates))
    return mix(*parts)


def _modules(tensors: Iterable[str]) -> set[str]:
    """The modules that have a weight."""
    return {bare(name).removesuffix(".weight") for name in tensors if name.endswith(".weight")}


def _untied_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json has to say now; that of an image model has a part for the text's model."""
    fields: dict[str, Any] = {_FLAG: False}
    if isinstance(part := checkpoint.json("config.json").get("text_config"), dict):
        fields["text_config"] = {**part, _FLAG: False}
    return fields


def _weight_sites(mixed: Mix) -> list[str]:
    """The sites whose weight changes on one side only, if it is tied to another."""
    return list(dict.fromkeys(s for s, up in _updates(mixed) if up.has_weight and not up.keeps_tie))


def _updates(mixed: Mix) -> Iterator[tuple[str, Update]]:
    return (item for part in mixed.parts for item in part.updates.items())


def _is_outside_layers(name: str) -> bool:
    """Whether a name has no number in it, as those of heads and embeddings."""
    return re.search(r"\.\d+\.", name) is None


def _is_tied(checkpoint: Checkpoint, tensors: Iterable[str]) -> bool:
    """Whether what could be tied is.

    A file with both tensors is tied only if its config says so, which some old ones do. A file with
    one is tied unless its config says that it is not: then the model has no head at all.
    """
    config = checkpoint.json("config.json")
    part = config.get("text_config")
    said = config.get(_FLAG, part.get(_FLAG) if isinstance(part, dict) else None)
    return said is True if _HEAD in map(bare, tensors) else said is not False


def _embedding(checkpoint: Checkpoint, problems: Iterable[str]) -> str:
    """The tensor that is both, if its head can be given one of its own.

    That is so for decoders whose head is `lm_head` and nothing more. BERT's head has other parts
    that are tied with it, and with T5's and BART's ``shared`` the flag ties other modules as well.
    """
    tensors = list(checkpoint.tensors)
    modules = (name.removesuffix(".weight") for name in tensors if _is_outside_layers(name))
    ties = Ties.of(tensors)
    both = [f"{module}.weight" for module in modules if ties.problem(module)]
    is_shared = any(name.endswith("shared.weight") for name in both)
    if len(both) == 1 and not is_shared and ties.problem(_HEAD.removesuffix(".weight")):
        return both[0]
    raise LayoutError(
        f"{option('untie')} knows decoders with a plain {_HEAD}, and {checkpoint.name} is "
        f"none: found {', '.join(both) or 'no embedding'}, for {', '.join(problems)}. Untie the "
        "model with transformers: give the head a parameter of its own, set "
        f"config.{_FLAG} = False, save it."
    )
