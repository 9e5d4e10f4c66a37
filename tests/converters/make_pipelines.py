"""Writes pipelines.json: the files and tensors of tiny pipelines, as diffusers saves them.

It needs diffusers, torch and transformers: ``python -m tests.converters.make_pipelines``. The tests
read only the JSON file.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .pipelines import TABLE


def _pipelines() -> dict[str, tuple[str, dict[str, Any]]]:
    """The class and the components of each pipeline."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import transformers

    def clip(width: int, kind: Any) -> Any:
        config = transformers.CLIPTextConfig(
            vocab_size=10,
            hidden_size=width,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=6,
            max_position_embeddings=5,
        )
        return kind(config)

    def unet(**options: Any) -> Any:
        return diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=10,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        )

    def vae() -> Any:
        return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)

    def t5() -> Any:
        config = transformers.T5Config(
            vocab_size=9, d_model=10, d_kv=4, d_ff=12, num_layers=1, num_heads=2
        )
        return transformers.T5EncoderModel(config)

    def wan() -> Any:
        return diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=10,
            freq_dim=8,
            ffn_dim=20,
            num_layers=1,
            rope_max_seq_len=16,
        )

    flux = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=10,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    plain, projected = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    sdxl = unet(
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=18,
    )
    return {
        "sd": ("StableDiffusionPipeline", {"text_encoder": clip(8, plain), "unet": unet()}),
        "sdxl": (
            "StableDiffusionXLPipeline",
            {
                "text_encoder": clip(8, projected),
                "text_encoder_2": clip(10, projected),
                "unet": sdxl,
                "vae": vae(),
            },
        ),
        "flux": (
            "FluxPipeline",
            {"text_encoder": clip(8, projected), "text_encoder_2": t5(), "transformer": flux},
        ),
        "wan": ("WanPipeline", {"transformer": wan(), "transformer_2": wan()}),
    }


def main() -> None:
    """Writes the table."""
    table: dict[str, Any] = {}
    for name, (kind, components) in _pipelines().items():
        table[name] = {"_class_name": kind, "components": {}}
        for component, model in components.items():
            with tempfile.TemporaryDirectory() as text:
                model.save_pretrained(text)
                (file,) = Path(text).glob("*.safetensors")
                config = json.loads(Path(text, "config.json").read_text())
                with safe_open(file, "np") as opened:
                    slices = {key: opened.get_slice(key) for key in opened.keys()}
                shapes = {key: "x".join(map(str, x.get_shape())) for key, x in slices.items()}
            library = "transformers" if component.startswith("text_") else "diffusers"
            kept = ("_class_name", "architectures", "model_type", "tie_word_embeddings")
            table[name]["components"][component] = {
                "class": [library, type(model).__name__],
                "file": file.name,
                "config": {key: config[key] for key in kept if key in config},
                "tensors": shapes,
            }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
