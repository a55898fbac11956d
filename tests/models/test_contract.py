"""Every installed architecture keeps the contract."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from segdesk.nn import contract
from segdesk.nn.heads import Activation
from segdesk.nn.registry import architectures
from segdesk.nn.spec import ModelSpec

SPECS = [pytest.param(spec, id=name) for name, spec in architectures().items()]
every = pytest.mark.parametrize("spec", SPECS)


@every
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (5, 4)])
def test_maps_have_the_images_size(spec: ModelSpec, channels: int, classes: int) -> None:
    contract.check_shapes(spec, channels, classes)


@every
def test_parts_hold_every_parameter_once(spec: ModelSpec) -> None:
    contract.check_parts(contract.build(spec))


@every
def test_gradients_reach_every_parameter(spec: ModelSpec) -> None:
    contract.check_gradients(spec)


@every
def test_evaluation_is_deterministic_and_dropout_declared(spec: ModelSpec) -> None:
    contract.check_modes(spec)


@every
def test_weights_survive_saving(spec: ModelSpec, tmp_path: Path) -> None:
    contract.check_round_trip(spec, tmp_path)


@every
def test_initialisation_is_as_declared(spec: ModelSpec) -> None:
    contract.check_initialisation(spec)


@every
def test_it_exports(spec: ModelSpec) -> None:
    if not spec.is_exportable:
        assert any("export" in text for text in spec.deviations), "say why in the deviations"
        return
    contract.check_export(spec)


@every
@pytest.mark.parametrize("kind", ["A", "B", "C", "D"])
def test_it_takes_every_head(spec: ModelSpec, kind: str) -> None:
    # Which activation goes with which kind matters nowhere; together all occur.
    for activation in list(Activation)["ABCD".index(kind) % 2 :: 2]:
        contract.check_head(spec, kind, str(activation))


@every
def test_its_file_imports_only_torch_and_nn(spec: ModelSpec) -> None:
    file = inspect.getsourcefile(spec.build)
    assert file is not None
    for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            is_standard = name.split(".")[0] in {
                "__future__", "collections", "typing", "itertools", "functools", "math",
                "dataclasses", "enum",
            }  # fmt: skip
            assert is_standard or name.startswith(("torch", "segdesk.nn")), name


@every
def test_its_spec_says_what_a_user_must_know(spec: ModelSpec) -> None:
    assert {"head", "activation"} <= set(spec.options)
    assert set(spec.small) <= set(spec.options)
    assert spec.title
    assert spec.reference
    assert 1950 < spec.year < 2030
    assert all(text.endswith(".") for text in spec.deviations)
