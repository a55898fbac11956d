"""Bytes: image and label files, the project store, atomic writes."""
