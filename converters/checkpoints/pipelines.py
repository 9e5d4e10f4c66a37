"""Pipelines of diffusers: a folder with ``model_index.json``, and a sub-folder per component."""

from pathlib import Path

from jaxmix.models.checkpoint import read_json

__all__ = ["PIPELINE_FILE", "component_folders", "is_pipeline"]

PIPELINE_FILE = "model_index.json"


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers."""
    return (folder / PIPELINE_FILE).is_file()


def component_folders(folder: Path) -> dict[str, Path]:
    """Returns the folder of each component of a pipeline: models, schedulers, tokenizers.

    Args:
        folder: The pipeline's folder.

    Returns:
        ``{component: folder}``, in the order of ``model_index.json``. Components that it lists as
        absent, and folders that it does not list, are left out.

    Raises:
        CheckpointError: If ``model_index.json`` is not a JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = '{"unet": ["diffusers", "UNet2DConditionModel"], "vae": [null, null]}'
        ...     _ = Path(folder, "model_index.json").write_text(index)
        ...     Path(folder, "unet").mkdir()
        ...     list(component_folders(Path(folder)))
        ['unet']

    Source: diffusers' ``DiffusionPipeline.save_pretrained``.
    """
    index = read_json(folder / PIPELINE_FILE)
    return {
        name: folder / name
        for name, value in index.items()
        # Other entries are the pipeline's settings. A component's name is a keyword argument.
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
        if name.isidentifier() and not name.startswith("_") and (folder / name).is_dir()
    }
