"""The order in which PEFT must load adapters to compute a mix, and the script that does it."""

from collections.abc import Sequence

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.stack import peft_stack
from jaxmix.errors import JaxmixError, UnsupportedError
from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, SHiRA, Update, parts_of

__all__ = ["ordered", "script"]

# What PEFT's mixed model takes; it refuses other types.
_MIXED = (AdaLoRA, LoHa, LoKr, LoRA, OFT, SHiRA)


def ordered(parts: Sequence[Adapter]) -> list[Adapter]:
    """The parts of a mix in the order in which PEFT has to load them.

    PEFT applies runs of consecutive OFT in the opposite order, and no SHiRA over other wrappers.

    Args:
        parts: the adapters, the one that is applied first first.

    Returns:
        The same adapters.

    Raises:
        UnsupportedError: if PEFT's mixed model can't compute it in any order of loading.
    """
    if len(parts) < 2:
        return list(parts)
    odd = [p.name for p in parts if not all(map(_is_mixed, p.updates.values()))]
    order = _runs_turned(parts)
    try:
        given = [part.name for part in peft_stack(order).parts]
    except JaxmixError:
        given = []
    late = [p.name for p in order[1:] if any(isinstance(u, SHiRA) for u in p.updates.values())]
    if odd or late or given != [part.name for part in parts]:
        why = "its order"
        if odd or late:
            why = f"the type of {', '.join(map(repr, odd or late))} beside others"
        raise UnsupportedError(
            f"PEFT's mixed model can't compute this mix: it does not have {why}. Make one LoRA of "
            "it, jaxmix.to_lora(mix, params), keep it as a mix, jaxmix.save(mix, folder), or merge "
            "it, jaxmix.merge_checkpoint."
        )
    return order


def _is_mixed(update: Update) -> bool:
    return all(isinstance(part, _MIXED) for part in parts_of(update))


def _runs_turned(parts: Sequence[Adapter]) -> list[Adapter]:
    """Runs of OFT reversed, so that PEFT reverses them back."""
    out: list[Adapter] = []
    run: list[Adapter] = []
    for part in parts:
        if any(isinstance(update, OFT) for update in part.updates.values()):
            run.insert(0, part)
            continue
        out += [*run, part]
        run = []
    return out + run


def script(names: Sequence[str]) -> str:
    """A script that loads folders into PEFT's mixed model, one after the other.

    ``from_pretrained`` refuses an OFT that comes first, so the adapters are added and filled.

    Args:
        names: the folders beside the script, in order.

    Returns:
        Python's text.
    """
    listed = ", ".join(map(repr, names))
    return f'''"""Loads the adapters beside this file into PEFT's mixed model, in their order."""

from pathlib import Path

import peft
from safetensors.torch import load_file

FOLDERS = [{listed}]


def load(base):
    """The base with all adapters active; base is a torch module."""
    here, mixed = Path(__file__).parent, None
    for name in FOLDERS:
        config = peft.PeftConfig.from_pretrained(str(here / name))
        key = name.replace(".", "-")
        if mixed is None:
            mixed = peft.get_peft_model(base, config, key, mixed=True)
        else:
            mixed.add_adapter(key, config)
        tensors = load_file(here / name / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(mixed, tensors, adapter_name=key)
    mixed.set_adapter([name.replace(".", "-") for name in FOLDERS])
    return mixed.eval()
'''
