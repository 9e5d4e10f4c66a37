"""The families: one file each, a line in this table each."""

from jaxmix.families.adalora import AdaLoRA
from jaxmix.families.base import Update
from jaxmix.families.delta import Delta
from jaxmix.families.ia3 import IA3
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.oft import OFT
from jaxmix.families.rebase import Rebase
from jaxmix.families.replace import Replace
from jaxmix.families.shira import SHiRA
from jaxmix.families.together import Together

__all__ = [
    "FAMILIES",
    "IA3",
    "OFT",
    "AdaLoRA",
    "Delta",
    "LoHa",
    "LoKr",
    "LoRA",
    "Rebase",
    "Replace",
    "SHiRA",
    "Together",
    "Update",
]

FAMILIES: dict[str, type[Update]] = {
    family.family: family
    for family in (IA3, AdaLoRA, Delta, LoHa, LoKr, LoRA, OFT, Rebase, Replace, SHiRA, Together)
}
