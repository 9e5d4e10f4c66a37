"""The families of updates, each one file and one row of the table `FAMILIES`."""

from jaxmix.families.adalora import AdaLoRA
from jaxmix.families.adamss import AdaMSS
from jaxmix.families.base import Update
from jaxmix.families.boft import BOFT
from jaxmix.families.c3a import C3A
from jaxmix.families.deft import DEFT
from jaxmix.families.delora import DeLoRA
from jaxmix.families.delta import Delta
from jaxmix.families.diag_oft import DiagOFT
from jaxmix.families.expert_lora import ExpertLoRA
from jaxmix.families.fourierft import FourierFT
from jaxmix.families.frod import FRoD
from jaxmix.families.glora import GLoRA
from jaxmix.families.gralora import GraLoRA
from jaxmix.families.hira import HiRA
from jaxmix.families.hra import HRA
from jaxmix.families.ia3 import IA3
from jaxmix.families.kasa import KaSA
from jaxmix.families.loha import LoHa
from jaxmix.families.lokr import LoKr
from jaxmix.families.lora import LoRA
from jaxmix.families.miss import MiSS
from jaxmix.families.normed import Normed
from jaxmix.families.oft import OFT
from jaxmix.families.peanut import PEANuT
from jaxmix.families.psoft import PSOFT
from jaxmix.families.randlora import RandLoRA
from jaxmix.families.rebase import Rebase
from jaxmix.families.replace import Replace
from jaxmix.families.road import RoAd
from jaxmix.families.shira import SHiRA
from jaxmix.families.supertuning import SuperTuning
from jaxmix.families.tinylora import TinyLoRA
from jaxmix.families.together import Together, parts_of
from jaxmix.families.tokens import Tokens
from jaxmix.families.unilora import UniLoRA
from jaxmix.families.vblora import VBLoRA
from jaxmix.families.vera import PVeRA, VeRA
from jaxmix.families.waveft import WaveFT

__all__ = [
    "BOFT",
    "C3A",
    "DEFT",
    "FAMILIES",
    "HRA",
    "IA3",
    "OFT",
    "PSOFT",
    "AdaLoRA",
    "AdaMSS",
    "DeLoRA",
    "Delta",
    "DiagOFT",
    "ExpertLoRA",
    "FRoD",
    "FourierFT",
    "GLoRA",
    "GraLoRA",
    "HiRA",
    "KaSA",
    "LoHa",
    "LoKr",
    "LoRA",
    "MiSS",
    "Normed",
    "PEANuT",
    "PVeRA",
    "RandLoRA",
    "Rebase",
    "Replace",
    "RoAd",
    "SHiRA",
    "SuperTuning",
    "TinyLoRA",
    "Together",
    "Tokens",
    "UniLoRA",
    "Update",
    "VBLoRA",
    "VeRA",
    "WaveFT",
    "parts_of",
]

FAMILIES: dict[str, type[Update]] = {
    family.family: family
    for family in (
        FRoD,
        PEANuT,
        DEFT,
        PSOFT,
        GLoRA,
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
        AdaMSS,
        C3A,
        DeLoRA,
        FourierFT,
        GraLoRA,
        KaSA,
        RandLoRA,
        SuperTuning,
        TinyLoRA,
        UniLoRA,
        VBLoRA,
        WaveFT,
        VeRA,
    )
}
