"""Ends a training run whose numbers are no longer finite: no later step can repair it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from aif_stream.errors import NonFiniteError
from aif_stream.model.net import Net
from aif_stream.model.version import ModelVersion
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Served

_HINT: Final = "train with a lower learning_rate (--set learning_rate=…) and --restart"
_REQUESTS: Final = 64  # scored as served, after the run: a wrong user side shows in any request


class Watch:
    """The place of a run, for the message of what diverges there: epoch, step of so many, gradient norm."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._place = "before the first step"

    @contextmanager
    def step(self, epoch: int, step: int, steps: int, loss: float, norm: float) -> Iterator[None]:
        """Around the optimizer's use of the gradients. Clipping turns an infinite norm into zeros and NaN, so ``norm``
        is the one before clipping. Raises ``NonFiniteError``."""
        self._place = f"epoch {epoch}, step {step} of {steps}, gradient norm {norm:.3g}"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(f"loss {loss:.4g}")
        try:
            yield
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            self._refuse(f"loss {loss:.4g}, and the optimizer's step is beyond float32")

    def weights(self, net: Net) -> None:
        """Raises ``NonFiniteError`` when a weight is not finite, be it of an id that no later batch shows."""
        for name, value in net.state_dict().items():
            if not value.isfinite().all():
                self._refuse(f"{name} holds weights that are not finite")

    def scores(self, scores: NDArray[np.floating], what: str) -> None:
        """Raises ``NonFiniteError`` when a score is not finite."""
        wrong = int((~np.isfinite(scores)).sum())
        if wrong:
            self._refuse(f"{wrong} of {len(scores)} {what} are not finite")

    def served(self, version: ModelVersion, data: Dataset) -> None:
        """The finished version as it is served: rows in 16 bits, and scores by them. Raises ``NonFiniteError``."""
        try:
            served = Served(version, data)
        except NonFiniteError as error:
            self._refuse(error.what)
        table = data.requests
        for request in table.of(Split.TEST)[:_REQUESTS].tolist():
            shown = table.item[table.first[request] : table.first[request + 1]]
            self.scores(served(request, shown), "served scores of a test request")

    def _refuse(self, what: str) -> NoReturn:
        raise NonFiniteError(f"{self._name}: training diverged: {what} ({self._place})", mend=_HINT) from None
