"""The precision that a server scores in is what its settings say, measured, or the start is refused."""

from __future__ import annotations

import dataclasses

import pytest

from aif_stream.errors import SettingsError
from aif_stream.kernels import native
from aif_stream.kernels.native import Level, best_level
from aif_stream.model.config import Kind
from aif_stream.online.precision import Precision, settle, use_kernels
from aif_stream.settings import Settings
from tests.model_builders import make_items, small_version


def test_float32_is_exact_by_definition_and_names_its_instructions() -> None:
    model = small_version()
    rows = model.item_side(make_items(10), model.layout.dtype).rows
    expected = "twin" if best_level() is Level.NUMPY else best_level().name.lower()
    assert settle(model, "f32", lambda: rows) == Precision(expected, "f32", 1.0)


def test_a_version_without_a_kernel_says_so() -> None:
    model = small_version(Kind.TWOTOWER)
    rows = model.item_side(make_items(10), model.layout.dtype).rows
    assert settle(model, "bf16", lambda: rows) == Precision("twin", "f32", 1.0)


@pytest.mark.skipif(not native.has_bf16(), reason="this CPU has no AVX512_BF16")
def test_the_overlap_of_bf16_is_measured_on_the_rows_that_are_served() -> None:
    model = small_version()
    rows = model.item_side(make_items(2000), model.layout.dtype).rows
    found = settle(model, "bf16", lambda: rows)
    assert model.bf16
    assert found.compute == "bf16"
    assert found.top100_overlap is not None
    assert 0.97 <= found.top100_overlap <= 1.0
    assert settle(model, "bf16", lambda: rows[:50]).top100_overlap is None


def test_what_the_machine_lacks_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aif_stream.online.precision.has_bf16", lambda: False)
    with pytest.raises(SettingsError, match="AIF_COMPUTE=bf16"):
        use_kernels(dataclasses.replace(Settings(), compute="bf16"))
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(SettingsError, match="AIF_KERNELS=avx2"):
        use_kernels(dataclasses.replace(Settings(), kernels="avx2"))
