"""The artefact of a version: a directory with ``manifest.json`` and ``weights.safetensors``. No pickle.

The manifest names the version, its config (features included), the row layout, the weights' SHA-256 and the
metrics of its training. What is loaded is checked against it before anything is served.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from aif_stream.clock import now_ms
from aif_stream.domain.decoding import UNDECODABLE
from aif_stream.domain.versions import check_version_name
from aif_stream.errors import ArtefactError, VersionError
from aif_stream.model.config import ModelConfig
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.safetensors"
# Raised when the meaning of a weight or of a row changes; an artefact of another schema is refused.
SCHEMA: Final = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifest.json``. ``row_bytes`` is the row's size, so that an index of another layout is told apart early."""

    schema: int
    version: str
    created_ms: int
    config: ModelConfig
    row_bytes: int
    weights_sha256: str
    weights_bytes: int
    metrics: dict[str, Any] = {}


def save(directory: Path, model: ModelVersion) -> Manifest:
    """Write an artefact, complete or not at all. Raises ``ArtefactError`` when ``directory`` holds something, and for a
    weight that is not finite, which ``load`` would refuse."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ArtefactError(f"{directory} exists already", mend="versions are never overwritten: choose another --out")
    for name, value in model.net.state_dict().items():
        if not value.isfinite().all():
            raise ArtefactError(f"{model.name}: {name} holds numbers that are not finite", mend="train it again")
    weights = save_tensors({name: value.contiguous() for name, value in model.net.state_dict().items()})
    manifest = Manifest(
        schema=SCHEMA,
        version=model.name,
        created_ms=now_ms(),
        config=model.config,
        row_bytes=model.layout.dtype.itemsize,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        weights_bytes=len(weights),
        metrics=model.metrics,
    )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise ArtefactError(f"cannot write beside {directory}: {error}") from None
    try:
        _write(draft / WEIGHTS, weights)
        _write(draft / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        draft.chmod(0o755)  # mkdtemp makes it private; other roles read it
        draft.rename(directory)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ArtefactError(f"cannot write {directory}: {error}") from None
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, checked for schema and name. Raises ``ArtefactError``."""
    return _manifest(directory / MANIFEST, _manifest_bytes(directory))


def _manifest_bytes(directory: Path) -> bytes:
    path = directory / MANIFEST
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no path at all (a NUL in it)
        why = getattr(error, "strerror", None) or error
        raise ArtefactError(f"{path!s:.300}: {why}", mend="aif train --out writes an artefact") from None


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            raise ArtefactError(f"{path} has schema {schema}, this program reads {SCHEMA}", mend="train it again")
        manifest = msgspec.json.decode(data, type=Manifest)
        check_version_name(manifest.version)
        row_bytes = manifest.config.layout.dtype.itemsize
    except (*UNDECODABLE, TypeError, VersionError) as error:
        raise ArtefactError(f"{path} is no manifest: {error}", mend="copy the artefact again") from None
    if manifest.row_bytes != row_bytes:
        raise ArtefactError(f"{path}: rows of {manifest.row_bytes} bytes do not fit its config")
    return manifest


def manifest_sha256(directory: Path) -> str:
    """The fingerprint that a published version carries. Raises ``ArtefactError``."""
    data = _manifest_bytes(directory)
    _manifest(directory / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def load(directory: Path, *, offline: bool = False) -> ModelVersion:
    """Read, verify and build a version. Raises ``ArtefactError`` saying what does not fit.

    A model that can only be judged (``exact`` and its like) is refused unless ``offline``: no role may serve it.
    """
    manifest = read_manifest(directory)
    if manifest.config.offline and not offline:
        raise ArtefactError(
            f"{directory} is a {manifest.config.kind.value} model, a bound to compare with: no role can serve it",
            mend="aif evaluate judges it; publish an aif model",
        )
    path = directory / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}", mend="copy the artefact again") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.weights_sha256:
        raise ArtefactError(
            f"{path} ({len(data)} bytes, sha256 {digest[:12]}…) is not what its manifest names"
            f" ({manifest.weights_bytes} bytes, {manifest.weights_sha256[:12]}…)",
            mend="copy the artefact again",
        )
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise ArtefactError(f"{path} is no safetensors file: {error}") from None
    try:
        net = Net(manifest.config, seed=0)
        _check_tensors(net.state_dict(), tensors, path)
        net.load_state_dict(tensors)
        return ModelVersion(manifest.version, net, manifest.metrics)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, MemoryError) as error:
        raise ArtefactError(f"{directory}: its config gives no model: {type(error).__name__}: {error}") from error


class _Schema(msgspec.Struct):
    schema: int


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise ArtefactError(f"{path} lacks {name}", mend="train it again")
        other = found[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise ArtefactError(
                f"{path}: {name} is {other.dtype} {tuple(other.shape)}, expected {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not other.isfinite().all():
            raise ArtefactError(f"{path}: {name} holds numbers that are not finite", mend="train it again")
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise ArtefactError(f"{path} holds unknown weights: {', '.join(unknown[:5])}")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
