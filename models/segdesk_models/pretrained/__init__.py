"""Trained models: one folder each, with weights.safetensors and card.json."""
