"""The first model version of ``aif up``: trained on the generator of its catalogue, published, active."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from aif_stream.embedded.process import run_tool
from aif_stream.nearline.rollout import publish_version
from aif_stream.runtime.catalogue import SEED, Catalogue
from aif_stream.settings import Settings

Report = Callable[[str], None]

# A first model is to be there soon: a slice of the catalogue teaches it the generator's rules in about 20 s.
_USERS: Final = 2_000
_ITEMS: Final = 20_000
_IMPRESSIONS: Final = 60_000
_DEADLINE_S: Final = 600.0


async def first_model(settings: Settings, catalogue: Catalogue, report: Report) -> None:
    """Train (unless ``models_dir`` has it from an interrupted start), publish and activate.

    Nothing happens without a catalogue. Raises ``EmbeddedError`` with the trainer's last lines.
    """
    if not catalogue.items or not catalogue.users:
        return
    artefact = settings.models_dir / "first"
    if not artefact.exists():
        users, items = min(catalogue.users, _USERS), min(catalogue.items, _ITEMS)
        report(f"training a first model on {_IMPRESSIONS:,} impressions")
        data = f"synthetic:users={users},items={items},impressions={_IMPRESSIONS},seed={SEED}"
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        train = [sys.executable, "-m", "aif_stream", "train", data, "--out", str(artefact), "--preset", "quick"]
        await run_tool(
            [*train, "--restart"],  # what a killed start left behind may be of another catalogue
            directory=settings.models_dir,
            deadline_s=_DEADLINE_S,
            mend="run the same command by hand",
        )
    report("publishing the model")
    await publish_version(settings, artefact, activate=True)
