"""The families: one file each, a line in this table each."""

from jaxmix.families.adalora import AdaLoRA
from jaxmix.families.base import Update
from jaxmix.families.boft import BOFT
from jaxmix.families.delta import Delta
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.glora import GLoRA
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.hira import HiRA
from jaxmix.families.hra import HRA
from jaxmix.families.ia3 import IA3
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.miss import MiSS
from jaxmix.families.normed import Normed
from jaxmix.families.oft import OFT
from jaxmix.families.rebase import Rebase
from jaxmix.families.replace import Replace
from jaxmix.families.road import RoAd
from jaxmix.families.shira import SHiRA
from jaxmix.families.together import Together
from jaxmix.families.tokens import Tokens
from jaxmix.families.vera import PVeRA, VeRA

__all__ = [
    "BOFT",
    "FAMILIES",
    "HRA",
    "IA3",
    "OFT",
    "AdaLoRA",
    "Delta",
    "DiagOFT",
    "ExpertLoRA",
    "GLoRA",
    "HiRA",
    "LoHa",
    "LoKr",
    "LoRA",
    "MiSS",
    "Normed",
    "PVeRA",
    "Rebase",
    "Replace",
    "RoAd",
    "SHiRA",
    "Together",
    "Tokens",
    "Update",
    "VeRA",
]

FAMILIES: dict[str, type[Update]] = {
    family.family: family
    for family in (GLoRA, 
        HiRA,
        MiSS,
        Tokens,
        RoAd,
        HRA,
        BOFT,
        AdaLoRA,
        Delta,
        DiagOFT,
        ExpertLoRA,
        IA3,
        LoHa,
        LoKr,
        LoRA,
        Normed,
        OFT,
        PVeRA,
        Rebase,
        Replace,
        SHiRA,
        Together,
        VeRA,
    )
}
