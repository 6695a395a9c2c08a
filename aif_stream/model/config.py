"""What fixes a model version besides its weights: widths, features, parts. Kept as JSON in the manifest."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from aif_stream.domain.row import RowLayout
from aif_stream.errors import ArtefactError

FieldKind = Literal["label", "labels", "number"]
MAX_SIGNATURE_BITS: Final = 256  # the tier kernel's bound
MAX_TIERS: Final = 64


class Kind(StrEnum):
    """Which model: each contains the one before it, so that none is starved of features."""

    TWOTOWER = "twotower"
    COLD = "cold"
    AIF = "aif"


class Field(msgspec.Struct, frozen=True):
    """One attribute. ``label``: one string; ``labels``: a set of strings, averaged; ``number``: standardised.

    A value outside ``vocabulary`` is the field's unknown value, as is a missing one; a missing number
    is the mean. Numbers are accepted as labels ("12"), single strings as a set of one.
    """

    name: str
    kind: FieldKind
    vocabulary: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Widths and features of a version. Letters as in the room's docstring.

    ``long`` and ``short``: newest usable history entries that the version reads, and that self-attention reads.
    """

    kind: Kind = Kind.AIF
    width: int = 32
    hidden: int = 64
    head: int = 32
    bridges: int = 8
    signature_bits: int = 64
    tiers: int = 8
    long: int = 1000
    short: int = 50
    heads: int = 2
    id_buckets: int = 1 << 14
    content_width: int = 0
    categories: tuple[str, ...] = ()
    item_fields: tuple[Field, ...] = ()
    user_fields: tuple[Field, ...] = ()
    # Softmax over bridges at 1 (times √D) ends near uniform: every read-out the same. At .3 it does not.
    bridge_temperature: float = 0.3

    def __post_init__(self) -> None:
        widths = (self.width, self.hidden, self.head, self.bridges, self.tiers, self.long, self.short, self.heads)
        if min(*widths, self.id_buckets) <= 0 or self.content_width < 0:
            raise ArtefactError("every width of a model must be positive")
        if self.width % self.heads:
            raise ArtefactError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.tiers > MAX_TIERS or self.signature_bits > MAX_SIGNATURE_BITS:
            raise ArtefactError(f"at most {MAX_TIERS} tiers and {MAX_SIGNATURE_BITS} signature bits")
        for fields in (self.item_fields, self.user_fields):
            names = [field.name for field in fields]
            if len(set(names)) != len(names):
                raise ArtefactError(f"a field is named twice: {', '.join(names)}")
        _ = self.layout  # its own checks

    @property
    def layout(self) -> RowLayout:
        return RowLayout(self.hidden, self.width, self.bridges, self.signature_bits)

    @property
    def embedding(self) -> int:
        """E: concatenated field embeddings times a matrix are a sum of wider ones, so one width serves all."""
        return 2 * self.width

    @property
    def tier_edges(self) -> NDArray[np.int64]:
        """Matching bits at which tiers 1 … T-1 begin, i64 (T-1), rising.

        Unrelated signatures match in W/2 ± √W/2 bits, so tiers of equal width would leave most empty:
        the bounds lie from one deviation below the middle to where near-duplicates begin.
        """
        deviations = np.linspace(-1.0, 6.0, max(self.tiers - 1, 1))[: self.tiers - 1]
        edges = self.signature_bits / 2 + deviations * np.sqrt(self.signature_bits) / 2
        return np.unique(np.clip(np.round(edges), 1, self.signature_bits).astype(np.int64))
