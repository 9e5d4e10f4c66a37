"""Training: what is trained, gradients, strengths that are learned, checkpoints, a real mix."""
