"""Ours against what independent implementations answered (see tests/support/parity.py)."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from parity import Case, assert_same, frozen, ours

CASES = [
    case
    for file in sorted(Path(__file__).resolve().parents[1].glob("support/parity_*.py"))
    for case in importlib.import_module(file.stem).CASES
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_answers_as_an_independent_implementation(case: Case) -> None:
    assert_same(ours(case), frozen(case))
