"""The types of PEFT that jaxmix reads: one file each, a line in this table each."""

from jaxmix.converters.peft.kind import Kind
from jaxmix.converters.peft.kinds import (
    adalora,
    beft,
    boft,
    glora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    miss,
    oft,
    road,
    shira,
    trainable_tokens,
    vera,
)

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = {
    "ADALORA": adalora.KIND,
    "BEFT": beft.KIND,
    "BOFT": boft.KIND,
    "BONE": miss.BONE,
    "GLORA": glora.KIND,
    "HIRA": hira.KIND,
    "HRA": hra.KIND,
    "IA3": ia3.KIND,
    "LN_TUNING": ln_tuning.KIND,
    "LOHA": loha.KIND,
    "LOKR": lokr.KIND,
    "LORA": lora.KIND,
    "MISS": miss.MISS,
    "OFT": oft.KIND,
    "PVERA": vera.PVERA,
    "ROAD": road.KIND,
    "SHIRA": shira.KIND,
    "TRAINABLE_TOKENS": trainable_tokens.KIND,
    "VERA": vera.VERA,
}
