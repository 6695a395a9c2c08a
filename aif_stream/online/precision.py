"""How this server scores: which instructions, in which precision, and what that precision does to the best hundred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from aif_stream.domain.events import BehaviorKind
from aif_stream.domain.history import ENTRY, KIND_BITS
from aif_stream.domain.row import Rows
from aif_stream.errors import SettingsError
from aif_stream.kernels.native import default_level, has_bf16, use_level
from aif_stream.model.compiled import overlap
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.settings import Settings

# Rows of the served version on which the precision is measured: ten times what the best hundred are chosen from would
# be better, but a start waits for it. 10,000 rows and five users take 30 ms.
SAMPLE_ROWS: Final = 10_000
_USERS: Final = 5
_BEST: Final = 100


@dataclass(frozen=True, slots=True)
class Precision:
    """``kernels``: level by name, "twin" where the version has no kernel. ``top100_overlap``: mean share of the best
    hundred in float32 that are among the best hundred as served, over sampled rows and histories; None: not measured
    (too few rows here, or ``AIF_JOIN=redis``)."""

    kernels: str
    compute: str
    top100_overlap: float | None


def use_kernels(settings: Settings) -> None:
    """Take up ``kernels`` and ``compute`` of the settings. Raises ``SettingsError`` where this machine lacks them."""
    try:
        use_level(settings.kernels)
    except ValueError as error:
        raise SettingsError(f"AIF_KERNELS={settings.kernels}: {error}", mend="leave it at auto") from None
    if settings.compute == "bf16" and not has_bf16():
        raise SettingsError("AIF_COMPUTE=bf16: no AVX512_BF16 here", mend="leave it at f32")


def settle(model: ModelVersion, compute: str, sampled: Callable[[], Rows]) -> Precision:
    """Switch a loaded version to the precision and measure it on ``sampled()`` rows of it. Blocks for some 30 ms."""
    if not model.compiled:
        return Precision("twin", "f32", 1.0)
    level = default_level().name.lower()
    if compute == "f32":
        return Precision(level, "f32", 1.0)
    sample = sampled()
    if len(sample) < 2 * _BEST:
        model.bf16 = True
        return Precision(level, "bf16", None)
    users = [_user(model, sample, seed) for seed in range(_USERS)]
    model.bf16 = False
    exact = [model.score(user, sample) for user in users]
    model.bf16 = True
    found = [overlap(model.score(user, sample), best, _BEST) for user, best in zip(users, exact, strict=True)]
    return Precision(level, "bf16", round(float(np.mean(found)), 4))


def _user(model: ModelVersion, sample: Rows, seed: int) -> UserSide:
    """A user who touched some of the rows."""
    chosen = np.random.default_rng(seed).integers(0, len(sample), min(model.config.long, len(sample)))
    history = np.zeros(len(chosen), ENTRY)
    history["time_kind"] = (np.arange(len(chosen), dtype=np.uint64) * 60_000 << KIND_BITS) + BehaviorKind.CLICK.code
    return model.user_side(None, history, sample[chosen], np.ones(len(chosen), np.bool_))
