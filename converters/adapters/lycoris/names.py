"""Matches module names with underscores for dots to the names of the base's modules."""

from collections.abc import Collection, Mapping

from jaxmix.converters.adapters.lycoris.parts import (
    components_of,
    missing_component,
    respell_module,
)
from jaxmix.converters.names import other_names
from jaxmix.errors import CheckpointError, listing, option
from jaxmix.placement.names import bare

__all__ = ["match_modules"]


def match_modules(
    wanted: Mapping[str, tuple[str, str]], modules: Collection[str], where: str
) -> dict[str, str]:
    """Returns the base's modules for names with underscores for dots.

    Args:
        wanted: ``{name in the file: (role of its model, name without the file's prefix)}``.
        modules: The base's module names.
        where: The file, for messages.

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
    unwrapped: dict[str, list[str]] = {}
    for module in modules:
        plain.setdefault(module.replace(".", "_"), []).append(module)
        unwrapped.setdefault(bare(module).replace(".", "_"), []).append(module)
    found: dict[str, str] = {}
    problems: list[str] = []
    lost: dict[str, tuple[str, str]] = {}
    for name, (role, rest) in wanted.items():
        fitting: list[str] = []
        for spelling in respell_module(role, rest, "_"):
            under = [f"{prefix}.".replace(".", "_") + spelling for prefix in components_of(role)]
            keys = (spelling, *under)
            for table in (plain, unwrapped):
                fitting = fitting or [module for key in keys for module in table.get(key, ())]
        if len(fitting) == 1:
            found[name] = fitting[0]
        elif fitting:
            problems.append(f"{name}: may be {' or '.join(fitting)}")
        else:
            lost[name] = role, rest
    for names in other_names(modules) if lost else ():
        flat = {other.replace(".", "_"): other for other in names}
        if all(rest in flat for _, rest in lost.values()):
            found |= {name: flat[rest] for name, (_, rest) in lost.items()}
            lost = {}
            break
    for name, (role, _) in lost.items():
        reason = missing_component(components_of(role), modules) or "no module of this name"
        problems.append(f"{name}: {reason}")
    owners: dict[str, str] = {}
    for name, module in found.items():
        if (other := owners.setdefault(module, name)) != name:
            problems.append(f"{name}: is {module}, and so is {other}")
    if problems:
        raise CheckpointError(
            f"{where}: names in which dots became underscores, and that the base does not "
            f"settle:{listing(problems)}\nExpected for each exactly one of the base's "
            f"{len(modules)} modules ({', '.join(sorted(modules)[:3])} …). Was the adapter trained "
            "on another model, or does the file use other names for its modules? If the file "
            f"covers several models, select one with {option('part', '…')}, the prefix of its "
            "names."
        )
    return found
