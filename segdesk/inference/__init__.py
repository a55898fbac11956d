"""Prediction: tiles, probabilities, uncertainty, and the engine process."""
