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
HISTORY_KINDS: Final = 8  # three bits of a stored entry


class Kind(StrEnum):
    """Which model: twotower ⊂ cold ⊂ aif and the bounds, so that none is starved of features."""

    TWOTOWER = "twotower"
    COLD = "cold"
    AIF = "aif"
    DIN = "din"
    EXACT = "exact"
    HAMMING = "hamming"


class Part(StrEnum):
    """What AIF adds to COLD, each switchable. In the bounds attention over the whole history stands for ``bea`` and
    ``lsh``, and in ``din`` and ``exact`` ``tiers`` reads cosines instead of signatures."""

    BEA = "bea"
    LSH = "lsh"
    TIERS = "tiers"
    SIM = "sim"


# Attention over the long history per candidate: judged, never served.
OFFLINE: Final = frozenset({Kind.DIN, Kind.EXACT, Kind.HAMMING})
# Those of them that read content vectors, which no row carries.
COSINES: Final = frozenset({Kind.DIN, Kind.EXACT})


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
    # Softmax over bridges: at 1 (times √D) it ends near uniform, and every read-out is the same; at .3 read-outs of a
    # user still have cosines of .84 … .95, at .03 of .1 … .4 (docs/model.md), and no GAUC is lost.
    bridge_temperature: float = 0.03
    bridge_start: Literal["orthogonal", "normal"] = "orthogonal"
    bridge_norm: bool = False  # bridges through a layer norm wherever they are used
    # The item's read-out also times t, as attention has it: one product of (B, K) and (B, D) more on the online path.
    bridge_product: bool = False
    user_history: bool = True  # whether u reads the history; off, the user vector is made of the profile alone
    parts: tuple[Part, ...] = tuple(Part)
    # Kinds of behavior (BehaviorKind.code) of each histogram; none: one histogram of everything.
    tier_groups: tuple[tuple[int, ...], ...] = ()
    # Similarities at which tiers 1 … T-1 begin; none: see ``bounds``.
    tier_bounds: tuple[float, ...] = ()
    second_key: str = ""  # a label field of the items: SIM by it as by category
    codes: int = 0  # M: tiers of the nearest of M codewords instead of the item's own signature; 0: its own

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
        self._check_parts()
        _ = self.layout  # its own checks

    def _check_parts(self) -> None:
        kinds = [kind for group in self.tier_groups for kind in group]
        if len(set(kinds)) != len(kinds) or not all(0 <= kind < HISTORY_KINDS for kind in kinds):
            raise ArtefactError(f"tier_groups name a kind twice or one that is none: {self.tier_groups}")
        if self.tier_bounds and (
            len(self.tier_bounds) != self.tiers - 1 or list(self.tier_bounds) != sorted(set(self.tier_bounds))
        ):
            raise ArtefactError(f"{self.tiers} tiers need {self.tiers - 1} rising bounds, not {self.tier_bounds}")
        if self.second_key and self.second_key not in [f.name for f in self.item_fields if f.kind == "label"]:
            raise ArtefactError(f"second_key {self.second_key!r} is no label field of the items")
        if self.codes < 0 or (self.codes and not self.has(Part.TIERS)):
            raise ArtefactError("codes are of the tiers: they need the part tiers")
        if self.codes and self.offline:
            raise ArtefactError(f"{self.kind.value} attends to each entry: it has no codes")

    @property
    def offline(self) -> bool:
        """Whether the model is judged but never served."""
        return self.kind in OFFLINE

    @property
    def cosines(self) -> bool:
        """Whether tiers are of content vectors, not of signatures; such models are offline."""
        return self.kind in COSINES

    def has(self, part: Part) -> bool:
        """Whether a part is computed."""
        if self.kind in {Kind.TWOTOWER, Kind.COLD} or (self.offline and part in {Part.BEA, Part.LSH}):
            return False
        return part in self.parts

    @property
    def layout(self) -> RowLayout:
        return RowLayout(
            self.hidden, self.width, self.bridges, self.signature_bits, bool(self.second_key), self.codes > 0
        )

    @property
    def embedding(self) -> int:
        """E: concatenated field embeddings times a matrix are a sum of wider ones, so one width serves all."""
        return 2 * self.width

    @property
    def tier_columns(self) -> int:
        """Tier features of a candidate: T for each group of kinds."""
        return self.tiers * max(1, len(self.tier_groups))

    @property
    def bounds(self) -> NDArray[np.float64]:
        """Similarities (1 - angle/π) at which tiers 1 … T-1 begin, f64 (T-1), rising.

        Unrelated signatures of 64 bits match in 32 ± 4, so tiers of equal width would leave most empty: the bounds
        lie from one deviation below the middle to six above, where near-duplicates begin. They do not narrow with
        more bits: what is similar does not depend on how finely it is measured.
        """
        if self.tier_bounds:
            return np.array(self.tier_bounds)
        return 0.5 + np.linspace(-1.0, 6.0, max(self.tiers - 1, 1))[: self.tiers - 1] / 16

    @property
    def tier_edges(self) -> NDArray[np.int64]:
        """The bounds as matching bits, i64, rising; of few bits some fall together."""
        edges = np.round(self.bounds * self.signature_bits)
        return np.unique(np.clip(edges, 1, self.signature_bits).astype(np.int64))
