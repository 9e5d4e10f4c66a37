"""Determines the order in which PEFT must load adapters to compute a mix, and writes a script."""

from collections.abc import Sequence

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.peft.stack import peft_stack
from jaxmix.errors import JaxmixError, UnsupportedError, remedy, to_lora_call
from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, SHiRA, Update, parts_of

__all__ = ["ordered", "script"]

# The types that PEFT's mixed model accepts.
_MIXED = (AdaLoRA, LoHa, LoKr, LoRA, OFT, SHiRA)


def ordered(parts: Sequence[Adapter]) -> list[Adapter]:
    """Returns the parts of a mix in the order in which PEFT must load them.

    PEFT applies runs of consecutive OFT adapters in reverse, and no SHiRA over other wrappers.

    Args:
        parts: The adapters, in order of application.

    Returns:
        The adapters, in order of loading.

    Raises:
        UnsupportedError: If PEFT's mixed model can't compute the mix in any order of loading.
    """
    if len(parts) < 2:
        return list(parts)
    odd = [p.name for p in parts if not all(map(_is_mixed, p.updates.values()))]
    order = _with_runs_reversed(parts)
    try:
        names = [part.name for part in peft_stack(order).parts]
    except JaxmixError:
        names = []
    late = [p.name for p in order[1:] if any(isinstance(u, SHiRA) for u in p.updates.values())]
    if odd or late or names != [part.name for part in parts]:
        reason = "its order"
        if odd or late:
            reason = f"the type of {', '.join(map(repr, odd or late))} with others"
        raise UnsupportedError(
            f"PEFT's mixed model can't compute this mix: it does not support {reason}. Convert the "
            f"mix to one LoRA, {to_lora_call('mix')}, save it as a mix, "
            f"{remedy('jaxmix.save(mix, folder)', '`jaxmix convert --to mix`')}, or merge it, "
            f"{remedy('jaxmix.merge_checkpoint', '`jaxmix merge`')}."
        )
    return order


def _is_mixed(update: Update) -> bool:
    return all(isinstance(part, _MIXED) for part in parts_of(update))


def _with_runs_reversed(parts: Sequence[Adapter]) -> list[Adapter]:
    """Reverses runs of OFT adapters, which PEFT reverses again."""
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
    """Returns a script that loads folders into PEFT's mixed model, one after the other.

    ``from_pretrained`` refuses a first adapter of OFT, so the script adds adapters and fills them.

    Args:
        names: The folders next to the script, in order.

    Returns:
        The script's source.
    """
    listed = ", ".join(map(repr, names))
    return f'''"""Loads the adapters next to this file into PEFT's mixed model, in order."""

from pathlib import Path

import peft
from safetensors.torch import load_file

FOLDERS = [{listed}]


def load(base):
    """Returns the base, a torch module, with all adapters active."""
    folder, mixed = Path(__file__).parent, None
    for name in FOLDERS:
        config = peft.PeftConfig.from_pretrained(str(folder / name))
        key = name.replace(".", "-")
        if mixed is None:
            mixed = peft.get_peft_model(base, config, key, mixed=True)
        else:
            mixed.add_adapter(key, config)
        tensors = load_file(folder / name / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(mixed, tensors, adapter_name=key)
    mixed.set_adapter([name.replace(".", "-") for name in FOLDERS])
    return mixed.eval()
'''
