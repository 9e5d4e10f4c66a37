"""Small configs of diffusers' models."""

from typing import Any

__all__ = ["FLUX", "KLEIN", "LTX", "LTX2", "SD3", "SD15", "SDXL", "UNET", "WAN", "Z_IMAGE"]

FLUX: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 6,
    "num_attention_heads": 2,
    "joint_attention_dim": 10,
    "pooled_projection_dim": 6,
}
WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 6,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 8,
    "ffn_dim": 14,
    "num_layers": 2,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
}
SD15: dict[str, Any] = {
    **UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}
SDXL: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 2,
    "projection_class_embeddings_input_dim": 20,
}
KLEIN: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 3,
    "joint_attention_dim": 10,
    "guidance_embeds": False,
}
Z_IMAGE: dict[str, Any] = {
    "in_channels": 4,
    "dim": 12,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 10,
}
LTX: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 3,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "num_layers": 2,
    "caption_channels": 10,
}
LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 8,
    "audio_in_channels": 3,
    "audio_out_channels": 3,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 3,
    "audio_cross_attention_dim": 6,
    "num_layers": 2,
    "caption_channels": 10,
}


SD3: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 3,
    "joint_attention_dim": 10,
    "caption_projection_dim": 12,
    "pooled_projection_dim": 8,
    "out_channels": 4,
    "pos_embed_max_size": 6,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
