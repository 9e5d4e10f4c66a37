"""The families: one file each, a line in this table each."""

from jaxmix.families.adalora import AdaLoRA
from jaxmix.families.base import Update
from jaxmix.families.delta import Delta
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.ia3 import IA3
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.normed import Normed
from jaxmix.families.oft import OFT
from jaxmix.families.rebase import Rebase
from jaxmix.families.replace import Replace
from jaxmix.families.shira import SHiRA
from jaxmix.families.together import Together
from jaxmix.families.vera import PVeRA, VeRA

__all__ = [
    "FAMILIES",
    "IA3",
    "OFT",
    "AdaLoRA",
    "Delta",
    "DiagOFT",
    "LoHa",
    "LoKr",
    "LoRA",
    "Normed",
    "PVeRA",
    "Rebase",
    "Replace",
    "SHiRA",
    "Together",
    "Update",
    "VeRA",
]

FAMILIES: dict[str, type[Update]] = {
    family.family: family
    for family in (AdaLoRA, Delta, DiagOFT, IA3, LoHa, LoKr, LoRA, Normed, OFT, PVeRA, Rebase, Replace, SHiRA, Together, VeRA)
}
