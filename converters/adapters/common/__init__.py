"""What the adapter formats share: tensors, files, shapes, config values, the base model."""
