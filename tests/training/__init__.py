"""Tests of training: initialization, gradients, learned strengths, checkpoints, a real mix."""
