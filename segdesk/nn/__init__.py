"""Torch parts that architectures, prediction and training share."""
