"""Unties heads that share the embedding's tensor, for models that are in no table.

Single files have no config, and models with custom code may tie any tensors. The names of their
tensors then show whether an embedding is also the head (see `placement.ties`).
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from jaxmix.adapter import chains_by_site
from jaxmix.converters.checkpoints.huggingface import Checkpoint
from jaxmix.converters.merging.rewriting import with_config, with_copy
from jaxmix.errors import LayoutError, listing, option
from jaxmix.families import Update, parts_of
from jaxmix.mixing import Mix, mix
from jaxmix.placement.names import bare
from jaxmix.placement.tied import bias_alone, trained_as_one
from jaxmix.placement.ties import Ties

__all__ = ["untied_by_name"]

_HEAD = "lm_head.weight"
_FLAG = "tie_word_embeddings"


def untied_by_name(
    checkpoint: Checkpoint, mixed: Mix, *, allowed: bool
) -> tuple[Checkpoint, Mix, tuple[str, ...]]:
    """Gives the head its own tensor if the mix changes an embedding that is also the head.

    Where the mix changes both equally, as after PEFT's ``ensure_weight_tying``, they stay tied.

    Args:
        checkpoint: The base.
        mixed: The adapters.
        allowed: Whether to untie; if not, a mix that requires it is an error.

    Returns:
        The checkpoint to merge into; the mix without sites whose tensor the checkpoint stores only
        under its tied partner's name; and the name of the untied head, if any.

    Raises:
        LayoutError: If the mix requires untying, and that is not allowed or not possible.
    """
    tensors = list(checkpoint.tensors)
    without_head = [name for name in tensors if bare(name) != _HEAD]
    sites = filter(_is_outside_layers, _weight_sites(mixed))
    ties = Ties.of(without_head)
    problems = {site: problem for site in sites if (problem := ties.problem(site))}
    if not problems or not _is_tied(checkpoint, tensors):
        return checkpoint, mixed, ()
    as_one, copies = trained_as_one(chains_by_site(mixed.parts), without_head, ties)
    if as_one.issuperset(problems):
        return checkpoint, _without(mixed, copies.difference(_modules(tensors)), tensors), ()
    if not allowed:
        raise LayoutError(
            f"{checkpoint.name} ties the tensors of these sites to others:"
            f"{listing(problems.values())}\nUse {option('untie')} to untie them in the output: "
            f"{_HEAD} is then written as a separate tensor, and {_FLAG} set to false in "
            "config.json."
        )
    tokens = {s for s, up in _updates(mixed) if any(part.keeps_tie for part in parts_of(up))}
    if tokens:
        raise LayoutError(
            "one adapter trained tokens, which changes both tied tensors, and another changes only "
            f"one of them:{listing([*tokens, *problems])}\nMerge the adapters one after the other."
        )
    if without_head == tensors:
        checkpoint = with_copy(checkpoint, _HEAD, of=_embedding(checkpoint, problems))
    return with_config(checkpoint, _untied_fields(checkpoint)), mixed, (_HEAD,)


def _without(mixed: Mix, sites: frozenset[str], tensors: Collection[str]) -> Mix:
    """Removes some sites' weights from the mix."""
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
    """Returns the modules that have a weight."""
    return {bare(name).removesuffix(".weight") for name in tensors if name.endswith(".weight")}


def _untied_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the new fields of config.json, and of its part for the text model if it has one."""
    fields: dict[str, Any] = {_FLAG: False}
    if isinstance(part := checkpoint.json("config.json").get("text_config"), dict):
        fields["text_config"] = {**part, _FLAG: False}
    return fields


def _weight_sites(mixed: Mix) -> list[str]:
    """Returns the sites whose updates change one tensor only, even if it is tied."""
    return list(dict.fromkeys(s for s, up in _updates(mixed) if up.has_weight and not up.keeps_tie))


def _updates(mixed: Mix) -> Iterator[tuple[str, Update]]:
    return (item for part in mixed.parts for item in part.updates.items())


def _is_outside_layers(name: str) -> bool:
    """Whether a name has no layer number, like those of heads and embeddings."""
    return re.search(r"\.\d+\.", name) is None


def _is_tied(checkpoint: Checkpoint, tensors: Iterable[str]) -> bool:
    """Whether a head and an embedding that can be tied are tied.

    A checkpoint with both tensors is tied only if its config says so, as some old ones do. One
    without a head tensor is tied unless its config says otherwise: then the model has no head.
    """
    config = checkpoint.json("config.json")
    part = config.get("text_config")
    flag = config.get(_FLAG, part.get(_FLAG) if isinstance(part, dict) else None)
    return flag is True if _HEAD in map(bare, tensors) else flag is not False


def _embedding(checkpoint: Checkpoint, problems: Iterable[str]) -> str:
    """Returns the name of the tied embedding, if the head can be given a separate tensor.

    This is possible for decoders whose head is `lm_head` alone. BERT's head has other tied parts,
    and with T5's and BART's ``shared`` the flag ties other modules as well.
    """
    tensors = list(checkpoint.tensors)
    modules = (name.removesuffix(".weight") for name in tensors if _is_outside_layers(name))
    ties = Ties.of(tensors)
    tied = [f"{module}.weight" for module in modules if ties.problem(module)]
    is_shared = any(name.endswith("shared.weight") for name in tied)
    if len(tied) == 1 and not is_shared and ties.problem(_HEAD.removesuffix(".weight")):
        return tied[0]
    raise LayoutError(
        f"{option('untie')} supports decoders with a plain {_HEAD}, which {checkpoint.name} is "
        f"not: found {', '.join(tied) or 'no embedding'} for {', '.join(problems)}. Untie the "
        "model with transformers instead: give the head a separate parameter, set "
        f"config.{_FLAG} = False and save the model."
    )
