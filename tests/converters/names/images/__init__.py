"""Names of the modules of image and video models."""
