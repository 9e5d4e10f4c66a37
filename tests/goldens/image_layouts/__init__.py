"""Trees of image and video models, as the libraries' own loaders make them of PyTorch's tensors."""
