"""The most uncertain places of a plane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdesk.inference.regions import LEAST, Region, find_regions, find_regions_of_stack


def blob(plane: np.ndarray, y: int, x: int, radius: int, value: float) -> None:
    rows, columns = np.ogrid[: plane.shape[0], : plane.shape[1]]
    plane[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = value


def holds(region: Region, y: int, x: int) -> bool:
    return region.y <= y < region.y + region.height and region.x <= x < region.x + region.width


def test_the_worst_place_comes_first_and_lies_in_its_box() -> None:
    plane = np.zeros((400, 600), np.float32)
    places = [(100, 450, 20, 0.9), (300, 200, 20, 0.6), (60, 60, 12, 0.8)]
    for place in places:
        blob(plane, *place)
    found = find_regions(plane)
    assert len(found) == len(places)
    for region, (y, x, _, value) in zip(found, places, strict=True):
        assert (region.height, region.width) == (64, 64)
        assert holds(region, y, x)
        # Its middle is the blob's, to a cell or so, so that the camera shows its surroundings.
        assert abs(region.y + 32 - y) <= 12
        assert abs(region.x + 32 - x) <= 12
        total = plane[plane == np.float32(value)].sum()
        assert region.mean == pytest.approx(total / 64**2, rel=1e-4)


def test_a_place_at_the_border_is_found_within_the_plane() -> None:
    plane = np.zeros((200, 203), np.float32)
    blob(plane, 199, 202, 10, 1.0)
    (found,) = find_regions(plane)
    assert holds(found, 199, 202)
    assert (found.y + found.height, found.x + found.width) == (200, 203)


def test_little_noise_beside_a_place_is_none() -> None:
    plane = np.full((512, 512), 0.001, np.float32)
    blob(plane, 250, 250, 15, 0.9)
    assert len(find_regions(plane)) == 1
    assert find_regions(np.zeros((512, 512), np.float32)) == []


def test_a_plane_of_many_bands_is_searched_as_a_whole() -> None:
    plane = np.zeros((1700, 90), np.float32)
    places = [(510, 30, 12, 0.9), (1020, 60, 12, 0.8), (1690, 40, 12, 0.7)]
    for place in places:
        blob(plane, *place)
    found = find_regions(plane)
    assert len(found) == len(places)
    for region, (y, x, _, _) in zip(found, places, strict=True):
        assert holds(region, y, x)


def test_places_of_a_stack_say_their_plane() -> None:
    stack = np.zeros((4, 128, 128), np.float32)
    blob(stack[2], 40, 40, 10, 0.9)
    blob(stack[0], 80, 80, 10, 0.5)
    found = find_regions_of_stack(stack)
    assert [region.z for region in found] == [2, 0]
    assert Region(**found[0].as_dict()) == found[0]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    count=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_boxes_lie_inside_do_not_overlap_and_are_in_order(
    height: int, width: int, count: int, seed: int
) -> None:
    plane = np.random.default_rng(seed).random((height, width), np.float32) ** 4
    found = find_regions(plane, count)
    assert 1 <= len(found) <= count
    taken = np.zeros(plane.shape, int)
    for region in found:
        box = np.s_[region.y : region.y + region.height, region.x : region.x + region.width]
        assert plane[box].shape == (region.height, region.width)
        assert region.mean == pytest.approx(float(plane[box].mean()), abs=1e-5)
        taken[box] += 1
    assert taken.max() == 1
    totals = [region.total for region in found]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] >= LEAST * totals[0]
