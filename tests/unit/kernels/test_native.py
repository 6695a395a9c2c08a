"""The library is found, or its absence is said once and everything runs on numpy."""

import logging
import shutil
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest

from aif_stream.errors import SettingsError
from aif_stream.kernels import native
from aif_stream.kernels.native import Level, best_level, choose
from aif_stream.kernels.slots import SlotTable


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The room without its library; the real one is found again afterwards."""
    monkeypatch.delenv("AIF_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_without_the_library_kernels_run_on_numpy_and_say_so_once(
    elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            table = SlotTable()
            table.assign(np.array([3], np.uint64), np.array([1], np.int32))
            assert table.lookup(np.array([3], np.uint64)).tolist() == [1]
    assert best_level() is Level.NUMPY
    assert [record.getMessage().split()[0] for record in caplog.records] == ["kernels.on_numpy"]


def test_a_library_that_cannot_be_loaded_is_no_library(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    (elsewhere / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert best_level() is Level.NUMPY
    assert len(caplog.records) == 1


@pytest.mark.skipif(best_level() is Level.NUMPY, reason="no compiled library")
def test_a_library_of_another_interface_is_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    suffix = EXTENSION_SUFFIXES[0]
    built = Path(choose.__code__.co_filename).parent / f"_native{suffix}"
    shutil.copy(built, elsewhere / built.name)
    assert best_level() > Level.NUMPY
    native.library.cache_clear()
    monkeypatch.setattr(native, "_ABI", -1)
    assert best_level() is Level.NUMPY
    assert "interface" in caplog.text


@pytest.fixture
def loaded_again() -> Iterator[None]:
    """The library as another process would load it; afterwards as this one did."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.usefixtures("loaded_again")
@pytest.mark.parametrize("most", Level)
def test_cpu_capability_hides_what_is_beyond_it(monkeypatch: pytest.MonkeyPatch, most: Level) -> None:
    monkeypatch.delenv("AIF_CPU_CAPABILITY", raising=False)
    whole = best_level()
    native.library.cache_clear()
    monkeypatch.setenv("AIF_CPU_CAPABILITY", most.name.lower())
    assert best_level() is min(whole, most)
    assert (native.library() is None) == (min(whole, most) is Level.NUMPY)
    assert not native.has_bf16() or most is Level.AVX512


@pytest.mark.usefixtures("loaded_again")
def test_unknown_cpu_capability_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIF_CPU_CAPABILITY", "neon")
    with pytest.raises(SettingsError, match=r"AIF_CPU_CAPABILITY='neon' is none of numpy, portable, avx2, avx512"):
        best_level()


def test_a_level_that_the_machine_lacks_is_refused(elsewhere: Path) -> None:
    with pytest.raises(ValueError, match="PORTABLE asked for, this machine has NUMPY"):
        choose(Level.PORTABLE)
