"""Base checkpoints: Hugging Face folders, read whole, by slices, or from packed weights."""
