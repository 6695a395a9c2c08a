"""A model version as this server answers with it: model, join, and the user side of somebody unknown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aif_stream.domain.history import ENTRY
from aif_stream.domain.row import empty_rows
from aif_stream.index.mirror import Mirror
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.join import Join


@dataclass(frozen=True, slots=True)
class Serving:
    """Taken whole by a request when it arrives and kept to its end: nothing in it changes with the active version."""

    model: ModelVersion
    join: Join
    mirror: Mirror | None
    unknown_user: UserSide

    @property
    def name(self) -> str:
        return self.model.name


def unknown_user(model: ModelVersion) -> UserSide:
    """The user side of a user without profile and history."""
    return model.user_side(None, np.empty(0, ENTRY), empty_rows(model.layout, 0), np.empty(0, np.bool_))
