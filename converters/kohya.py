"""kohya's and LyCORIS's single files: `read_kohya` and `export_kohya`."""

from jaxmix.converters.adapters.kohya import export_kohya, read_kohya

__all__ = ["export_kohya", "read_kohya"]
