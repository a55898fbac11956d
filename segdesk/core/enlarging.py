"""From pixels of a coarser level of an image to those of the image: nearest neighbour.

Along an axis, pixel i of an image of n pixels is pixel ``i * m // n`` of a level of m.
"""

from __future__ import annotations


def first_pixel(index: int, level: int, whole: int) -> int:
    """Return the first pixel of the image that pixel ``index`` of a level stands for.

    Parameters
    ----------
    level, whole
        Pixels of the level and of the image along the axis.
    """
    return -(-index * whole // level)


def span(start: int, stop: int, level: int, whole: int) -> tuple[int, int]:
    """Return the pixels of the image that ``start`` up to ``stop`` of a level stand for."""
    return first_pixel(start, level, whole), first_pixel(stop, level, whole)


def span_in_level(start: int, stop: int, level: int, whole: int) -> tuple[int, int]:
    """Return the pixels of a level that ``start`` up to ``stop`` of the image lie in."""
    return start * level // whole, -(-stop * level // whole)
