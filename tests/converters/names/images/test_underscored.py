"""Names with underscores become names with dots, if the tables leave no choice."""

from jaxmix.converters.names.images.underscored import dotted_names

CLIP = "text_model_encoder_layers_3_self_attn_out_proj"
T5 = "encoder_block_2_layer_1_DenseReluDense_wi_0"


def dotted(*names: tuple[str, str]) -> list[str] | None:
    """Returns the names with dots of (role, name with underscores)."""
    wanted = {f"{role}|{name}": (role, name) for role, name in names}
    found = dotted_names(wanted)
    assert found is None or list(found) == list(wanted)
    return None if found is None else list(found.values())


def test_underscores_within_parts_are_kept() -> None:
    """A number may have several digits; underscores around a name are the file's."""
    wan = "blocks_31_self_attn_q", "_blocks_0_cross_attn_norm_k_"
    assert dotted(*(("unet", name) for name in wan)) == [
        "blocks.31.self_attn.q", "blocks.0.cross_attn.norm_k",
    ]  # fmt: skip
    assert dotted(("te1", CLIP)) == ["text_model.encoder.layers.3.self_attn.out_proj"]


def test_several_roles_have_components() -> None:
    """Flux's T5 is its second text encoder, that of Stable Diffusion 3 the third."""
    t5 = "encoder.block.2.layer.1.DenseReluDense.wi_0"
    clip = "text_model.encoder.layers.3.self_attn.out_proj"
    flux = ("unet", "single_blocks_0_modulation_lin")
    assert dotted(flux, ("te1", CLIP), ("te3", T5)) == [
        "transformer.single_blocks.0.modulation.lin",
        f"text_encoder.{clip}",
        f"text_encoder_2.{t5}",
    ]
    sd3 = ("unet", "joint_blocks_0_x_block_attn_qkv")
    assert dotted(sd3, ("te3", T5)) == [
        "transformer.joint_blocks.0.x_block.attn.qkv",
        f"text_encoder_3.{t5}",
    ]
    both = dotted(("te1", CLIP), ("te2", CLIP))
    assert both == [f"text_encoder.{clip}", f"text_encoder_2.{clip}"]


def test_unknown_and_ambiguous_names_are_none() -> None:
    """One name that is in no table leaves all to the base; so does a role without a table."""
    known = ("unet", "single_blocks_0_modulation_lin")
    assert dotted(known) == ["single_blocks.0.modulation.lin"]
    assert dotted(known, ("unet", "single_blocks_0_modulation_nil")) is None
    assert dotted(known, ("unet", "blocks_0_self_attn_q")) is None  # of another model
    assert dotted(known, ("te1", T5)) is None and dotted(("te9", CLIP)) is None
    assert dotted(("unet", "single_blocks_x_modulation_lin")) is None
    # Flux has img_attn.qkv, Hunyuan Video img_attn_qkv.
    assert dotted(("unet", "double_blocks_0_img_attn_qkv")) is None
    assert dotted() == []
