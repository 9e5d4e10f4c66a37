"""Adapters whose sites have the names that modules have in memory, on a checkpoint's own names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, Checkpoint
from jaxmix.converters.names.table import base_prefix, transforms_for
from jaxmix.converters.names.transforms import loaded_names
from jaxmix.errors import LayoutError, listing
from jaxmix.mixing import Mix

__all__ = ["Renaming", "renaming_of", "with_stored_names"]


@dataclass(frozen=True)
class Renaming:
    """The modules of a checkpoint by the names that they have in memory.

    Args:
        stored: The modules' names on disk.
        by_memory: ``{name in memory: names on disk}``.
        prefix: The prefix of the base model, which an adapter's sites may have or lack.
    """

    stored: frozenset[str]
    by_memory: Mapping[str, tuple[str, ...]]
    prefix: str = ""

    def candidates(self, site: str) -> tuple[str, ...]:
        """Returns the modules on disk that a site in memory may be, the best spelling only.

        Args:
            site: A site's name.
        """
        spellings = [site]
        if self.prefix:
            spellings += [f"{self.prefix}.{site}", site.removeprefix(f"{self.prefix}.")]
        return next((self.by_memory[name] for name in spellings if name in self.by_memory), ())


def renaming_of(checkpoint: Checkpoint) -> Renaming | None:
    """Returns how transformers would rename a checkpoint's modules; None if nothing says.

    Args:
        checkpoint: The base; its config.json names the model.
    """
    config = {} if checkpoint.is_file else checkpoint.json(CONFIG_FILE)
    # A model with code of its own may share a type with one of transformers' models.
    transforms = None if "auto_map" in config else transforms_for(config)
    if transforms is None:
        return None
    by_memory: dict[str, list[str]] = {}
    for name, loaded in loaded_names(checkpoint.tensors, transforms).items():
        for stored, site in {(name, loaded), (_module(name), _module(loaded))}:
            names = by_memory.setdefault(site, [])
            if stored not in names:
                names.append(stored)
    stored = frozenset({*checkpoint.tensors, *map(_module, checkpoint.tensors)})
    found = {site: tuple(sorted(names)) for site, names in by_memory.items()}
    return Renaming(stored, found, base_prefix(config))


def with_stored_names(mixed: Mix, checkpoint: Checkpoint) -> Mix:
    """Returns a mix whose sites have the names of a checkpoint's modules on disk.

    PEFT writes the names that modules have in memory. transformers renames tensors when it loads a
    checkpoint, so the names on disk may differ. A part of the mix whose sites are all on disk keeps
    its names; any other is renamed as transformers would rename the checkpoint.

    Args:
        mixed: The adapters.
        checkpoint: The base.

    Returns:
        The mix; sites that match no tensor keep their names.

    Raises:
        LayoutError: If a site may be two modules.
    """
    renaming = renaming_of(checkpoint)
    if renaming is None:
        return mixed
    parts = []
    for part in mixed.parts:
        names = _renamed(part.updates, renaming, part.name)
        updates = {names[site]: update for site, update in part.updates.items()}
        parts.append(replace(part, updates=updates))
    return replace(mixed, parts=tuple(parts))


def _renamed(sites: Iterable[str], renaming: Renaming, adapter: str) -> dict[str, str]:
    """``{site: name on disk}`` for the sites of one adapter."""
    sites = list(sites)
    names = {site: site for site in sites}
    several = {}
    if renaming.stored.issuperset(sites):
        # All names are on disk. Some renamings shift names (norm0 to norm1, norm1 to norm2), so a
        # name may be another module's in memory; nothing tells then which one is meant.
        for site in sites:
            found = renaming.by_memory.get(site, (site,))
            if site not in found:
                several[site] = (site, *found)
        sites = []
    for site in sites:
        found = renaming.candidates(site)
        if len(found) > 1 and site not in found:
            several[site] = found
        elif found and site not in found:
            names[site] = found[0]
    taken: dict[str, list[str]] = {}
    for site, name in names.items():
        taken.setdefault(name, []).append(site)
    lines = [f"{site}: {' and '.join(found)}" for site, found in several.items()]
    lines += [f"{name}: {' and '.join(those)}" for name, those in taken.items() if len(those) > 1]
    if lines:
        raise LayoutError(
            f"adapter {adapter!r}: sites that match the checkpoint's modules in several ways:"
            f"{listing(lines)}\nThe names in memory follow from config.json as transformers loads "
            "it. Give the adapter's sites the checkpoint's own names."
        )
    return names


def _module(name: str) -> str:
    """The module of a tensor."""
    return name.rpartition(".")[0] or name
