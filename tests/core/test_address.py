"""Paths, and addresses of images that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from segdesk.core.address import AnyAddress, is_gone, is_remote, name_of, stem_of, to_address


class Holder(BaseModel):
    image: AnyAddress


@pytest.mark.parametrize(
    ("address", "name", "stem"),
    [
        ("https://host/data/cells.ome.zarr", "cells.ome.zarr", "cells.ome"),
        ("https://host/my%20cells.zarr/", "my cells.zarr", "my cells"),
        ("s3://bucket/100%25.zarr", "100%25.zarr", "100%25"),
        ("https://host/plate.zarr/A/1/0", "plate-A-1-0.zarr", "plate-A-1-0"),
        ("s3://bucket/many.zarr.zip", "many.zarr.zip", "many"),
        (Path("scans", "a.tif"), "a.tif", "a"),
    ],
)
def test_names_are_what_a_user_would_call_the_image(
    address: Path | str, name: str, stem: str
) -> None:
    assert (name_of(address), stem_of(address)) == (name, stem)


def test_addresses_and_paths_survive_json(tmp_path: Path) -> None:
    for place in (tmp_path / "a.tif", "s3://bucket/a.zarr"):
        held = Holder.model_validate_json(Holder(image=place).model_dump_json())
        assert held.image == place
        assert type(held.image) is type(place)
    with pytest.raises(ValueError, match="neither a path nor an address"):
        Holder.model_validate_json('{"image": 5}')


def test_what_is_typed_in_capitals_or_as_a_file_is_understood(tmp_path: Path) -> None:
    assert to_address("HTTPS://Host/A.zarr") == "https://Host/A.zarr"
    assert to_address((tmp_path / "a b.tif").as_uri()) == tmp_path / "a b.tif"
    assert not is_remote(r"C:\images\a.tif")
    assert is_gone(tmp_path / "none.tif")
    assert not is_gone("https://host/none.zarr")  # only its server knows
