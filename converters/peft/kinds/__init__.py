"""The types of PEFT that jaxmix reads: one file each, a line in this table each."""

from jaxmix.converters.peft.kind import Kind
from jaxmix.converters.peft.kinds import adalora, ia3, loha, lokr, lora, oft, shira, vera

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = {
    "ADALORA": adalora.KIND,
    "IA3": ia3.KIND,
    "LOHA": loha.KIND,
    "LOKR": lokr.KIND,
    "LORA": lora.KIND,
    "OFT": oft.KIND,
    "PVERA": vera.PVERA,
    "SHIRA": shira.KIND,
    "VERA": vera.VERA,
}
