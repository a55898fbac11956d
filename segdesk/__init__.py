"""SegDesk: segment images, correct the masks, and fine-tune the model on them."""

__version__ = "0.1.0"
