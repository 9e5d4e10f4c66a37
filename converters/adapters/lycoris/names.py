"""Matches module names with underscores for dots to the names of the base's modules."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.lycoris.doubles import is_double
from jaxmix.converters.adapters.lycoris.parts import (
    components_of,
    in_component,
    missing_component,
    respell_module,
    spellings_of,
)
from jaxmix.converters.names import other_names
from jaxmix.errors import CheckpointError, listing, option
from jaxmix.placement.names import bare

__all__ = ["best_other_names", "match_modules"]

T = TypeVar("T")


def match_modules(
    wanted: Mapping[str, tuple[str, str]],
    modules: Collection[str],
    where: str,
    tensors: Mapping[str, SiteTensors] | None = None,
) -> dict[str, str]:
    """Returns the base's modules for names with underscores for dots.

    Args:
        wanted: ``{name in the file: (role of its model, name without the file's prefix)}``.
        modules: The base's module names.
        where: The file, for messages.
        tensors: ``{name in the file: its tensors}``, to drop a name whose module the file also has
            under another name, with equal tensors.

    Returns:
        ``{name in the file: module}``.

    Raises:
        CheckpointError: If names match no module, several, or the same one; all are listed.

    Example:
        >>> wanted = {"lora_unet_mid_attn_to_q": ("unet", "mid_attn_to_q")}
        >>> match_modules(wanted, ["mid.attn.to_q", "mid.attn.to_k"], "file")
        {'lora_unet_mid_attn_to_q': 'mid.attn.to_q'}
    """
    plain: dict[str, list[str]] = {}
    bare_names: dict[str, list[str]] = {}
    for module in modules:
        plain.setdefault(module.replace(".", "_"), []).append(module)
        bare_names.setdefault(bare(module).replace(".", "_"), []).append(module)
    matches: dict[str, str] = {}
    problems: list[str] = []
    lost: dict[str, tuple[str, str]] = {}
    for name, (role, bare_name) in wanted.items():
        fitting: list[str] = []
        # Some trainers add an underscore at the end.
        spellings = dict.fromkeys(
            spelling
            for each in (bare_name, bare_name.strip("_"))
            for spelling in respell_module(role, each, "_")
        )
        for spelling in spellings:
            under = [f"{prefix}.".replace(".", "_") + spelling for prefix in components_of(role)]
            keys = (spelling, *under)
            for table in (plain, bare_names):
                fitting = fitting or [module for key in keys for module in table.get(key, ())]
        if len(fitting) == 1:
            matches[name] = fitting[0]
        elif fitting:
            problems.append(f"{name}: may be {' or '.join(fitting)}")
        else:
            lost[name] = role, bare_name.strip("_")
    owners: dict[str, str] = {}
    for name, module in tuple(matches.items()):
        if (other := owners.setdefault(module, name)) == name:
            continue
        is_same_model = wanted[name][0] == wanted[other][0]
        if is_same_model and tensors and is_double(tensors[name], [tensors[other]]):
            del matches[name]
        else:
            problems.append(f"{name}: is {module}, and so is {other}")
    wanted_names = {name: spellings_of(role, rest, "_") for name, (role, rest) in lost.items()}
    for name, (other, parts) in best_other_names(wanted_names, modules).items():
        module = in_component(lost.pop(name)[0], other, modules)
        doubles = [owners[m] for m in ((module,) if module in owners else parts) if m in owners]
        if len(doubles) < len(parts):
            owners[module], matches[name] = name, module
        elif tensors is None or not is_double(tensors[name], [tensors[d] for d in doubles]):
            problems.append(f"{name}: is {module}, and so is {' and '.join(doubles)}")
    for name, (role, _) in lost.items():
        reason = missing_component(components_of(role), modules) or "no module of this name"
        problems.append(f"{name}: {reason}")
    if problems:
        raise CheckpointError(
            f"{where}: names with underscores for dots that the base does not resolve:"
            f"{listing(problems)}\nExpected each to match exactly one of the base's "
            f"{len(modules)} modules ({', '.join(sorted(modules)[:3])} …). Was the adapter trained "
            "on another model, or does the file use other names for its modules? If the file "
            f"covers several models, select one with {option('part', '…')}, the prefix of its "
            "names."
        )
    return matches


def best_other_names(
    wanted: Mapping[T, Sequence[str]], modules: Collection[str]
) -> dict[T, tuple[str, tuple[str, ...]]]:
    """Finds names in an image or video model's other scheme, by the table that has most of them.

    Args:
        wanted: The spellings of each name, by any key; underscores may stand for dots.
        modules: The base's module names.

    Returns:
        ``{key in wanted: (name with dots, the base's modules)}`` for the names that are found; the
        modules are empty if a name is only a part of a module.
    """
    best: dict[T, tuple[str, tuple[str, ...]]] = {}
    for names in other_names(modules) if wanted else ():
        flat = {other.replace(".", "_"): other for other in names}
        matches: dict[T, tuple[str, tuple[str, ...]]] = {}
        for key, spellings in wanted.items():
            fitting = (n for name in spellings if (n := name.replace(".", "_")) in flat)
            if (name := next(fitting, None)) is not None:
                matches[key] = flat[name], names[flat[name]]
        best = max(best, matches, key=len)
    return best
