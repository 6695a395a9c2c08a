"""An artefact is read back exactly, and refused when anything in it does not fit."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from aif_stream.errors import ArtefactError
from aif_stream.model.artefact import MANIFEST, WEIGHTS, load, manifest_sha256, read_manifest, save
from aif_stream.model.config import Kind
from aif_stream.model.version import ModelVersion
from tests.model_builders import VARIANTS, make_items, small_version


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "v1", small_version())
    return tmp_path / "v1"


def rewrite(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | changes))


def test_a_loaded_version_makes_the_same_rows(saved: Path) -> None:
    version, again = small_version(), load(saved)
    assert again.name == version.name
    assert again.config == version.config
    rows = [v.item_side(make_items(50), version.layout.dtype).rows.tobytes() for v in (version, again)]
    assert rows[0] == rows[1]


def test_an_offline_model_is_loaded_for_judging_only(tmp_path: Path) -> None:
    save(tmp_path / "bound", small_version(Kind.EXACT))
    with pytest.raises(ArtefactError, match="no role can serve it"):
        load(tmp_path / "bound")
    assert load(tmp_path / "bound", offline=True).config.kind is Kind.EXACT


def test_all_options_come_back(tmp_path: Path) -> None:
    version = small_version(**VARIANTS["all"])
    save(tmp_path / "all", version)
    again, items = load(tmp_path / "all"), make_items(30)
    assert again.config == version.config
    rows = [v.item_side(items, version.layout.dtype).rows.tobytes() for v in (version, again)]
    assert rows[0] == rows[1]


def test_metrics_travel_in_the_manifest(tmp_path: Path) -> None:
    version = small_version()
    save(tmp_path / "v", ModelVersion("v", version.net, {"gauc": 0.7}))
    assert read_manifest(tmp_path / "v").metrics == {"gauc": 0.7}
    assert load(tmp_path / "v").metrics == {"gauc": 0.7}


def test_an_artefact_is_never_overwritten(saved: Path) -> None:
    before = manifest_sha256(saved)
    with pytest.raises(ArtefactError, match="exists already"):
        save(saved, small_version(seed=1))
    assert manifest_sha256(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["v1"]


def test_a_changed_weight_byte_is_found(saved: Path) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtefactError, match="is not what its manifest names"):
        load(saved)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(ArtefactError, match=r"weights\.safetensors: No such file"):
        load(saved)
    with pytest.raises(ArtefactError, match=r"manifest\.json: No such file"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "has schema 99, this program reads 1"),
        ({"schema": "x"}, "is no manifest"),
        ({"version": "../../etc"}, "is no manifest"),
        ({"config": {"width": -4}}, "must be positive"),
        ({"row_bytes": 1}, "do not fit its config"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    rewrite(saved, **change)
    with pytest.raises(ArtefactError, match=message):
        load(saved)


@pytest.mark.parametrize("path", ["a\0b", "/x" * 5_000, "y" * 300, "/dev/null", "/proc/self/mem"])
def test_a_path_that_is_none_is_an_artefact_error(path: str) -> None:
    for read in (load, manifest_sha256, read_manifest):
        with pytest.raises(ArtefactError):
            read(Path(path))


@pytest.mark.parametrize("number", [b"1" + b"0" * 30, b"9" * 5_000, b"1e400"])
def test_a_config_of_huge_numbers_is_refused(saved: Path, number: bytes) -> None:
    manifest = json.loads((saved / MANIFEST).read_bytes())
    for field in ("width", "hidden", "signature_bits", "id_buckets", "content_width"):
        manifest["config"][field], before = "~", manifest["config"].get(field)
        (saved / MANIFEST).write_bytes(json.dumps(manifest).encode().replace(b'"~"', number))
        if field not in ("id_buckets", "content_width"):
            with pytest.raises(ArtefactError):
                read_manifest(saved)
        with pytest.raises(ArtefactError):
            load(saved)
        manifest["config"][field] = before


def test_a_manifest_nested_too_deep_is_refused(saved: Path) -> None:
    text = (saved / MANIFEST).read_bytes().rstrip()[:-1]
    (saved / MANIFEST).write_bytes(text + b',"unknown":' + b"[" * 3_000 + b"]" * 3_000 + b"}")
    with pytest.raises(ArtefactError, match="is no manifest"):
        load(saved)


def test_weights_of_another_shape_or_not_finite_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = "item_tower.share.weight"
    for change, message in [
        ({name: tensors[name][:1].clone()}, "expected torch.float32"),
        ({name: tensors[name] * np.nan}, "not finite"),
        ({"other": tensors[name].clone()}, "unknown weights: other"),
        ({name: None}, f"lacks {name}"),
    ]:
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(changed, saved / WEIGHTS)
        digest = sha256((saved / WEIGHTS).read_bytes()).hexdigest()
        rewrite(saved, weights_sha256=digest)
        with pytest.raises(ArtefactError, match=message):
            load(saved)
