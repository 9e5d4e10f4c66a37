"""Image and video models, and the names of their modules in the files of each program.

One table of names may cover several models, such as the U-Nets, whose files differ.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmix.converters.names.images import image_map, image_maps
from jaxmix.errors import LayoutError
from jaxmix.placement.name_map import NameMap
from jaxmix.placement.templates import Templates

__all__ = ["ImageModel", "fitting_models", "image_models"]


@dataclass(frozen=True)
class ImageModel:
    """A model, and the conventions of the programs that train adapters for it.

    Args:
        name: Its name for ``names=``.
        table: Its name map.
        text_encoders: The roles of the text encoders for which diffusers loads adapters.
        network: The module of sd-scripts or musubi-tuner that trains it.
        is_renamed_by_kohya: Whether these use diffusers' names of its modules.
        without: A pattern of original names that the table has but the model does not use.
        lacks: A pattern of modules, by any name, that the table has but the model does not.
    """

    name: str
    table: NameMap
    text_encoders: tuple[str, ...] = ()
    network: str = "networks.lora"
    is_renamed_by_kohya: bool = False
    without: str = "$^"
    lacks: str = "$^"

    @property
    def templates(self) -> Templates:
        """The rows of its table."""
        assert self.table.templates is not None
        return self.table.templates

    def has(self, module: str) -> bool:
        """Returns whether it has a module, by either name.

        Args:
            module: The name, without a component.
        """
        if re.match(self.lacks, module):
            return False
        return self.templates.has_source(module) or any(self.templates.stored(module))

    def is_original(self, module: str) -> bool:
        """Returns whether a name is one of the original project, and not of diffusers.

        Args:
            module: The name, without a component.
        """
        table = self.templates
        return table.has_source(module) and not any(table.stored(module))


# Names of the U-Nets' blocks differ by the number of their levels, and by where attention is.
_SD15 = r"(add_embedding|label_emb)\.|up_blocks\.0\.attentions|output_blocks\.[012]\.1\.(?!conv)"
_SDXL = (
    r"down_blocks\.(3|0\.attentions|2\.downsamplers)|up_blocks\.(3|2\.(attentions|upsamplers))"
    r"|input_blocks\.(9|1\d|[12]\.1)\.|output_blocks\.(9|1\d|[678]\.1|8\.2)\."
)
_REFINER = (
    r"down_blocks\.[03]\.attentions|up_blocks\.[03]\.attentions|input_blocks\.([12]|1[01])\.1\."
    r"|output_blocks\.([01]|9|1[01])\.1\.|output_blocks\.2\.1\.(?!conv)"
)
_ALIASES = r"(^|\.)processor\."
_SD = dict(
    table="unet",
    without=r"output_blocks\.2\.2\.conv|output_blocks\.[58]\.1\.conv",
)
_MODELS: dict[str, dict[str, Any]] = {
    "sd15": {
        **_SD,
        "text_encoders": ("te1",),
        "is_renamed_by_kohya": True,
        "lacks": _SD15 + r"|.*\.transformer_blocks\.[1-9]",
    },
    "sdxl": {
        **_SD,
        "text_encoders": ("te1", "te2"),
        "without": r"output_blocks\.[258]\.1\.conv",
        "lacks": _SDXL,
    },
    "sdxl_refiner": {**_SD, "text_encoders": ("te2",), "lacks": _REFINER},
    "flux": {"text_encoders": ("te1",), "network": "networks.lora_flux", "without": _ALIASES},
    "flux2": {"network": "networks.lora_flux_2"},
    "hidream": {},
    "hunyuan_video": {},
    "ltx": {},
    "lumina2": {"network": "networks.lora_lumina"},
    "qwen_image": {"network": "networks.lora_qwen_image"},
    "sd3": {"text_encoders": ("te1", "te2"), "network": "networks.lora_sd3"},
    "wan": {"network": "networks.lora_wan"},
    "z_image": {"network": "networks.lora_zimage", "is_renamed_by_kohya": True},
}
_OTHER_NAMES = {"sd14": "sd15", "sd2": "sd15", "sd21": "sd15", "sd35": "sd3", "chroma": "flux"}


def image_models(names: str | Mapping[str, Any] | None = None) -> list[ImageModel]:
    """Returns the models that a caller's ``names=`` may mean.

    Args:
        names: A model's name, the name of its table, or the config of diffusers' model; None for
            all.

    Raises:
        LayoutError: If there is no such model.

    Example:
        >>> [model.name for model in image_models("unet")]
        ['sd15', 'sdxl', 'sdxl_refiner']
    """
    tables = {table.name: table for table in image_maps()}
    all_models = [
        ImageModel(name, **{**fields, "table": tables[fields.get("table", name)]})
        for name, fields in _MODELS.items()
    ]
    if names is None:
        return all_models
    if isinstance(names, str):
        names = {"model_type": _OTHER_NAMES.get(names, names)}
    matching = [model for model in all_models if model.name == names.get("model_type")]
    table = image_map(names)
    matching = matching or [model for model in all_models if model.table is table]
    if not matching:
        shown = names.get("model_type") or names.get("_class_name")
        raise LayoutError(
            f"there is no image or video model {shown!r}, expected one of "
            f"{', '.join(_MODELS)}, the config of one of diffusers' models, or '' to write the "
            "adapter's names as they are."
        )
    return matching


def fitting_models(models: Iterable[ImageModel], modules: Collection[str]) -> list[ImageModel]:
    """Returns the models that have the most of some modules; empty if none has half of them.

    Args:
        models: The models.
        modules: The modules' names, without a component.
    """
    counts = [(sum(map(model.has, modules)), model) for model in models]
    most = max((count for count, _ in counts), default=0)
    # Many models share a few names, such as proj_out.
    return [model for count, model in counts if count == most] if 2 * most >= len(modules) else []
