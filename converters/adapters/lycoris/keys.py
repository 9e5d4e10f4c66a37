"""A key's end: which parameter it is, under the one name by which updates are built."""

import re

__all__ = ["BESIDE", "FAMILIES", "PARAMETERS", "split_key"]

# The names that kohya's scripts and LyCORIS give them are the ones used here.
FAMILIES: dict[str, tuple[str, ...]] = {
    "LoRA": ("lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "Delta": ("diff",),
    "norm": ("w_norm", "b_norm"),
    "IA3": ("weight", "on_input"),
    "OFT": ("oft_blocks", "rescale"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
}
# What may stand beside the factors of a family, and means something there; OFT's alpha is a bound.
BESIDE: dict[str, tuple[str, ...]] = {
    "LoRA": ("alpha", "scale", "lora_up.bias", "lora_magnitude_vector"),
    "LoHa": ("alpha", "scale"),
    "LoKr": ("alpha", "scale"),
    "OFT": ("alpha",),
    "GLoRA": ("alpha", "scale"),
}
# What may stand beside any.
_COMMON = ("dora_scale", "diff_b")
PARAMETERS = frozenset(
    name for table in (FAMILIES, BESIDE) for names in table.values() for name in names
).union(_COMMON)

# The same under the names of PEFT, diffusers, and those who write like them.
_OTHER_NAMES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_B.bias": "lora_up.bias",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
}
# The longest first, so that `lora_A.weight` is not taken for the `weight` of an IA3.
_ENDS = sorted((*PARAMETERS, *_OTHER_NAMES), key=lambda name: -name.count("."))

# PEFT's names in the state dict of a model in training: with the adapter's name.
_WITH_NAME = re.compile(
    r"(?P<before>.+\.(?:lora_[AB]|lora_magnitude_vector))\.(?!weight$|bias$)[^.]+"
    r"(?P<after>(?:\.(?:weight|bias))?)"
)


def split_key(key: str) -> tuple[str, str] | None:
    """The module of a key and the parameter, by the name used here; None for any other key.

    Args:
        key: a tensor's name.

    Returns:
        Module and parameter, or None.

    Example:
        >>> split_key("transformer.proj_out.lora_A.weight")
        ('transformer.proj_out', 'lora_down.weight')
        >>> split_key("lora_unet_mid_block.alpha")
        ('lora_unet_mid_block', 'alpha')
        >>> split_key("unet.conv_in.lora_A.default_0.weight")
        ('unet.conv_in', 'lora_down.weight')
        >>> split_key("emb_params")
    """
    if found := _WITH_NAME.fullmatch(key):
        key = found["before"] + found["after"]
    for end in _ENDS:
        if key.endswith(f".{end}"):
            module = key.removesuffix(f".{end}")
            return (module, _OTHER_NAMES.get(end, end)) if module else None
    return None
