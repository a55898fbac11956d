"""Qt and napari: layers, panels, and the bridge to the worker processes."""
