"""Tests of training: trained values, gradients, learned strengths, checkpoints, and a real mix."""
