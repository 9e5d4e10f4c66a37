"""Matches module names with underscores for dots to the names of the base's modules."""

from collections.abc import Collection, Mapping

from jaxmix.converters.names import other_names
from jaxmix.errors import CheckpointError, listing, option
from jaxmix.placement.names import bare

__all__ = ["COMPONENTS", "match_modules"]

# The names of the parts of a diffusion pipeline in a tree that contains several of them.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "unet": ("unet", "transformer", "diffusion_model", "model.diffusion_model", "prior"),
    "te1": ("text_encoder", "te1", "text_encoders.clip_l.transformer", "cond_stage_model"),
    "te2": ("text_encoder_2", "te2", "text_encoders.clip_g.transformer"),
    "te3": ("text_encoder_3", "te3", "text_encoders.t5xxl.transformer"),
}


def match_modules(
    wanted: Mapping[str, tuple[str, str]], modules: Collection[str], where: str
) -> dict[str, str]:
    """Returns the base's modules for names with underscores for dots.

    Args:
        wanted: ``{name in the file: (component, name without the file's prefix)}``.
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
    lost: dict[str, str] = {}
    for name, (component, rest) in wanted.items():
        under = [f"{prefix}.".replace(".", "_") + rest for prefix in COMPONENTS.get(component, ())]
        fitting = [module for key in (rest, *under) for module in plain.get(key, ())]
        fitting = fitting or [m for key in (rest, *under) for m in unwrapped.get(key, ())]
        if len(fitting) == 1:
            found[name] = fitting[0]
        elif fitting:
            problems.append(f"{name}: may be {' or '.join(fitting)}")
        else:
            lost[name] = rest
    for names in other_names(modules) if lost else ():
        flat = {other.replace(".", "_"): other for other in names}
        if all(rest in flat for rest in lost.values()):
            found |= {name: flat[rest] for name, rest in lost.items()}
            lost = {}
            break
    problems += [f"{name}: no module of this name" for name in lost]
    owners: dict[str, str] = {}
    for name, module in found.items():
        if (other := owners.setdefault(module, name)) != name:
            problems.append(f"{name}: is {module}, and so is {other}")
    if problems:
        raise CheckpointError(
            f"{where}: names in which dots became underscores, and that the base does not "
            f"settle:{listing(problems)}\nExpected for each exactly one of the base's "
            f"{len(modules)} modules ({', '.join(sorted(modules)[:3])} …). Was the adapter "
            "trained on another model? With several models in the file give "
            f"{option('part', '…')}, one of the prefixes before the module's name."
        )
    return found
