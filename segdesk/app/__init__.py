"""The desktop program around a public napari viewer."""
