"""Knobs: every setting a user can change, declared once."""
