"""Unties tensors that are one in memory, where adapters change only some of them.

PEFT's forward changes only the module that has the adapter. So the merged checkpoint needs each
tensor, and a config that no longer ties them. One flag may tie several pairs: BERT's weight and
bias of the head; T5's and BART's embeddings of encoder and decoder, and their head. Then all
tensors that the flag ties are written.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from jaxmix.adapter import chains_by_site
from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.converters.merging.rewriting import with_config, with_copy
from jaxmix.converters.merging.stored_ties import StoredTie, StoredTies, find_ties
from jaxmix.converters.merging.tensor_io import stored_chunks
from jaxmix.converters.merging.untying_by_name import untied_by_name
from jaxmix.converters.names.ties import FLAG, untied_fields
from jaxmix.errors import LayoutError, listing, option
from jaxmix.families import parts_of
from jaxmix.families.base import Chain
from jaxmix.mixing import Mix, mix
from jaxmix.placement.tied import bias_alone, is_same_chain

__all__ = ["untied"]


def untied(
    checkpoint: Checkpoint, mixed: Mix, *, allowed: bool, sites: Collection[str] = ()
) -> tuple[Checkpoint, Mix, tuple[str, ...]]:
    """Unties the tensors that are tied in the base and that the mix changes differently.

    Where the mix changes all equally, as after PEFT's ``ensure_weight_tying``, they stay tied.

    Args:
        checkpoint: The base.
        mixed: The adapters, with sites named as on disk where their tensors are in the files.
        allowed: Whether to untie; if not, a mix that requires it is an error.
        sites: The sites under the adapters' names.

    Returns:
        The checkpoint to merge into; the mix with names on disk, without sites whose tensor is
        stored only under a tied partner's name; and the names of the tensors that are new or no
        longer tied, the head first.

    Raises:
        LayoutError: If the mix requires untying, and that is not allowed or not possible.
    """
    stored_ties = find_ties(checkpoint, sites)
    if stored_ties is None:
        return untied_by_name(checkpoint, mixed, allowed=allowed)
    stored = checkpoint.tensors
    mixed = _with_names(mixed, stored_ties)
    by_site = chains_by_site(mixed.parts)
    ties = [tie for tie in stored_ties.ties if _is_active(tie, by_site, checkpoint)]
    groups = [group for group in _components(ties) if any(name in stored for name in group)]
    different = [
        tie
        for tie in ties
        if any(tie.target in group for group in groups)
        and not tie.is_inner_bias
        and not _is_same(tie, by_site)
    ]
    cut = {tie.tie.fields for tie in different}
    if not cut:
        return checkpoint, _without_copies(mixed, groups, stored), ()
    _check(checkpoint, mixed, different, allowed=allowed)
    kept = [tie for tie in ties if tie.tie.fields not in cut]
    out, names = checkpoint, []
    for group in groups:
        origin = next(name for name in group if name in stored)
        for part in _components(kept, group):
            if not any(name in stored for name in part):
                names.append(part[0])
                out = with_copy(out, part[0], of=origin)
    groups = _components(kept)
    mixed = _without_copies(mixed, groups, out.tensors)
    others = {tie.tie.fields for tie in stored_ties.ties} - cut
    fields = untied_fields(checkpoint.json(CONFIG_FILE), cut, others)
    if stored_ties.new_class:
        fields["architectures"] = [stored_ties.new_class]
    touched = [n for t in different for n in (t.target, t.source) if _chain(n, by_site)]
    first = [tie.target for tie in different if tie.target in (*names, *touched)]
    return with_config(out, fields), mixed, tuple(dict.fromkeys((*first, *names)))


def _is_active(tie: StoredTie, by_site: Mapping[str, Chain], checkpoint: Checkpoint) -> bool:
    """Whether transformers ties two tensors, and adapters may change only one of them.

    It ties two tensors that are both in the files only if they are equal.
    """
    stored, flag = checkpoint.tensors, tie.tie
    if tie.target not in stored:
        # Without a head in the files, a config without the flag belongs to a tied model. The head
        # may be stored under other names, such as those of packed weights.
        module = f"{tie.target.rpartition('.')[0]}."
        has_head = any(name.startswith(module) for name in stored)
        return flag.is_on or (flag.stated is None and not has_head)
    if tie.source not in stored:
        return flag.is_on
    if tie.is_inner_bias or not flag.is_on:
        return False
    if _is_same(tie, by_site):
        return False
    target, source = stored[tie.target], stored[tie.source]
    return (target.dtype, target.shape) == (source.dtype, source.shape) and all(
        a == b for a, b in zip(stored_chunks(target), stored_chunks(source), strict=True)
    )


def _is_same(tie: StoredTie, by_site: Mapping[str, Chain]) -> bool:
    """Whether adapters change both tensors equally; for biases, whether they change neither."""
    target, source = _chain(tie.target, by_site), _chain(tie.source, by_site)
    if tie.target.endswith(".bias"):
        return not target and not source
    return is_same_chain(target, source)


def _chain(name: str, by_site: Mapping[str, Chain], *, tokens: bool = False) -> Chain:
    """Returns the updates of a tensor; those of all tied tensors only with ``tokens``."""
    module, _, kind = name.rpartition(".")
    return tuple(
        (strength, update)
        for strength, update in by_site.get(module, ())
        if (
            update.has_bias
            if kind == "bias"
            else update.has_weight and (tokens or not update.keeps_tie)
        )
    )


def _components(ties: Iterable[StoredTie], names: Iterable[str] = ()) -> list[list[str]]:
    """Returns the sets of tensors that ties connect, sources first; among ``names`` if given."""
    names, ties = list(names), list(ties)
    if names:
        ties = [tie for tie in ties if tie.target in names]
    groups = [{name} for name in names] + [{tie.target, tie.source} for tie in ties]
    merged: list[set[str]] = []
    for group in groups:
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group]
        merged.append(group.union(*touching))
    targets = {tie.target for tie in ties}
    return [sorted(group, key=lambda name: (name in targets, name)) for group in merged]


def _with_names(mixed: Mix, stored_ties: StoredTies) -> Mix:
    """Renames the sites of modules that have no tensor in the files."""
    parts = [
        replace(part, updates={stored_ties.sites.get(s, s): up for s, up in part.updates.items()})
        for part in mixed.parts
    ]
    return replace(mixed, parts=tuple(parts))


def _check(
    checkpoint: Checkpoint, mixed: Mix, different: Iterable[StoredTie], *, allowed: bool
) -> None:
    """Raises if untying is not allowed, or an adapter needs the tie."""
    different = list(different)
    by_site = chains_by_site(mixed.parts)
    names = {name for tie in different for name in (tie.target, tie.source)}
    if not allowed:
        lines = [_described(tie, by_site) for tie in different]
        fields = {".".join((*tie.tie.fields, FLAG)) for tie in different}
        raise LayoutError(
            f"{checkpoint.name} ties the tensors of these sites to others:{listing(lines)}\n"
            f"Use {option('untie')} to untie them in the output: each is then written as a "
            f"separate tensor, and {' and '.join(sorted(fields))} set to false in {CONFIG_FILE}."
        )
    tokens = {
        site
        for site in (name.rpartition(".")[0] for name in sorted(names))
        for _, update in by_site.get(site, ())
        if any(part.keeps_tie for part in parts_of(update))
    }
    if tokens:
        sites = [n.rpartition(".")[0] for n in sorted(names) if _chain(n, by_site)]
        raise LayoutError(
            "one adapter trained tokens, which changes all tied tensors, and another changes only "
            f"one of them:{listing([*sorted(tokens), *sites])}\nMerge the adapters one after the "
            "other."
        )


def _described(tie: StoredTie, by_site: Mapping[str, Chain]) -> str:
    """Describes which of two tied tensors adapters change."""
    changed = [name for name in (tie.target, tie.source) if _chain(name, by_site)]
    how = "differently" if len(changed) > 1 else "not the other"
    sites = " and ".join(name.rpartition(".")[0] for name in changed)
    return f"{tie.target} is tied to {tie.source}; adapters change {sites}, {how}"


def _without_copies(mixed: Mix, groups: Iterable[list[str]], stored: Collection[str]) -> Mix:
    """Removes the weights of sites that are stored only under a tied partner's name."""
    by_site = chains_by_site(mixed.parts)
    copies = {
        name.rpartition(".")[0]
        for group in groups
        for name in group
        if name not in stored
        and name.endswith(".weight")
        and any(
            other in stored
            and is_same_chain(
                _chain(name, by_site, tokens=True), _chain(other, by_site, tokens=True)
            )
            for other in group
        )
    }
    parts = []
    for part in mixed.parts:
        updates = {site: up for site, up in part.updates.items() if site not in copies}
        for site in part.updates.keys() & copies:
            owner, bias = bias_alone(site, part.updates[site], stored)
            if owner is not None and bias is not None:
                updates[owner] = bias
        parts.append(replace(part, updates=updates))
    return mix(*parts)
