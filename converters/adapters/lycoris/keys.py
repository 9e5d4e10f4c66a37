"""Splits keys into module and parameter, and gives each parameter one name."""

import re

__all__ = ["FAMILIES", "OPTIONAL", "PARAMETERS", "split_key"]

# The names of kohya's scripts and LyCORIS.
FAMILIES: dict[str, tuple[str, ...]] = {
    "LoRA": ("lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "Delta": ("diff",),
    "saved norm": ("saved_weight",),
    "norm": ("w_norm", "b_norm"),
    "IA3": ("weight", "on_input"),
    "OFT": ("oft_blocks", "rescale"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
}
# Further tensors that a family may have with its factors; OFT's alpha is a bound.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "LoRA": ("alpha", "scale", "lora_up.bias", "lora_magnitude_vector"),
    "LoHa": ("alpha", "scale"),
    "LoKr": ("alpha", "scale"),
    "OFT": ("alpha",),
    "GLoRA": ("alpha", "scale"),
}
# Further tensors that any family may have.
_COMMON = ("dora_scale", "diff_b")
PARAMETERS = frozenset(
    name for table in (FAMILIES, OPTIONAL) for names in table.values() for name in names
).union(_COMMON) - {"saved_weight"}

# Their names in files of PEFT, diffusers, and similar programs.
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
# The longest first: `lora_A.weight` is not the `weight` of an IA3.
_ENDS = sorted((*PARAMETERS, *_OTHER_NAMES), key=lambda name: -name.count("."))

_NORM = re.compile(
    r"(?P<module>.+\.(?:norm_q|norm_k|norm_added_q|norm_added_k))\.weight"
    r"|(?P<other>.+\.norm\.(?:query_norm|key_norm))\.scale"
)

# PEFT's names in the state dict of a model in training, which contain the adapter's name.
_WITH_NAME = re.compile(
    r"(?P<before>.+\.(?:lora_[AB]|lora_magnitude_vector))\.(?!weight$|bias$)[^.]+"
    r"(?P<after>(?:\.(?:weight|bias))?)"
)


def split_key(key: str) -> tuple[str, str] | None:
    """Splits a key into its module and parameter; None for any other key.

    Args:
        key: A tensor's name.

    Returns:
        The module and the parameter's name in `FAMILIES` and `OPTIONAL`, or None.

    Example:
        >>> split_key("transformer.proj_out.lora_A.weight")
        ('transformer.proj_out', 'lora_down.weight')
        >>> split_key("lora_unet_mid_block.alpha")
        ('lora_unet_mid_block', 'alpha')
        >>> split_key("unet.conv_in.lora_A.default_0.weight")
        ('unet.conv_in', 'lora_down.weight')
        >>> split_key("emb_params")
        >>> split_key("diffusion_model.blocks.3.diff_m")
        ('diffusion_model.blocks.3.modulation', 'diff')
    """
    if match := _WITH_NAME.fullmatch(key):
        key = match["before"] + match["after"]
    # A difference of the tensor `modulation` of Wan's blocks and head.
    if key.endswith(".diff_m"):
        return f"{key.removesuffix('diff_m')}modulation", "diff"
    # Flux's control LoRAs contain the trained weights of these norms.
    if match := _NORM.fullmatch(key):
        return match["module"] or match["other"], "saved_weight"
    for end in _ENDS:
        if key.endswith(f".{end}"):
            module = key.removesuffix(f".{end}")
            return (module, _OTHER_NAMES.get(end, end)) if module else None
    return None
