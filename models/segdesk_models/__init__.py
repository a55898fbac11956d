"""The model zoo: one file per architecture."""
