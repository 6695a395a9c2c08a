"""A model version as this server answers with it: model, join, and the user side of somebody unknown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from aif_stream.domain.history import ENTRY
from aif_stream.domain.row import empty_rows
from aif_stream.index.mirror import Mirror
from aif_stream.model.split import UserSide
from aif_stream.model.version import ModelVersion
from aif_stream.online.join import Join
from aif_stream.online.mirror_feed import FedMirror
from aif_stream.online.precision import Precision


class InFlight:
    """How many requests are being answered with a version."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more, until the context ends."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Serving:
    """Taken whole by a request when it arrives and kept to its end: nothing in it changes with the active version."""

    model: ModelVersion
    join: Join
    fed: FedMirror | None
    unknown_user: UserSide
    in_flight: InFlight = field(default_factory=InFlight)
    precision: Precision | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def mirror(self) -> Mirror | None:
        return None if self.fed is None else self.fed.mirror

    @property
    def nbytes(self) -> int:
        """Memory of its mirror."""
        return 0 if self.fed is None else self.fed.mirror.nbytes


def unknown_user(model: ModelVersion) -> UserSide:
    """The user side of a user without profile and history."""
    return model.user_side(None, np.empty(0, ENTRY), empty_rows(model.layout, 0), np.empty(0, np.bool_))
