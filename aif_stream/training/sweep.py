"""Many models on one data set, each trained and judged alike: what experiments are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aif_stream.errors import NonFiniteError
from aif_stream.model.config import Kind, Part
from aif_stream.training.cost import mflop, online_ms
from aif_stream.training.dataset import Dataset
from aif_stream.training.evaluate import Judged, Served, judge
from aif_stream.training.loop import Recipe, Trainer

OnModel = Callable[[str, int, int], None]
"""Called with (model, models done, models) before each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a sweep; the first entry is what the others are compared with."""

    name: str
    kind: Kind = Kind.AIF
    choices: dict[str, Any] = field(default_factory=dict)


COLD: Final = Entry("cold", Kind.COLD)
BY_KIND: Final[dict[str, Any]] = {"tier_groups": ((1, 2, 3), (4,))}  # what was bought is seldom wanted again


def ladder() -> list[Entry]:
    """Two-tower and COLD by the profile alone → the user side on both → each part added → each part left out → the
    exact bound. COLD comes first: the others are compared with it."""
    parts = list(Part)
    profile = {"user_history": False}
    entries = [
        COLD,
        Entry("twotower, profile alone", Kind.TWOTOWER, profile),
        Entry("twotower", Kind.TWOTOWER),
        Entry("cold, profile alone", Kind.COLD, profile),
    ]
    added = [Entry(f"cold + {'+'.join(parts[:n])}", choices={"parts": tuple(parts[:n])}) for n in range(1, 4)]
    less = [Entry(f"aif − {p}", choices={"parts": tuple(q for q in parts if q is not p)}) for p in parts]
    alone = [Entry(f"cold + {p} alone", choices={"parts": (p,)}) for p in parts[1:]]
    rich = Entry("aif 256 bits, tiers by kind", choices={"signature_bits": 256, **BY_KIND})
    return [*entries, *added, Entry("aif"), rich, *alone, *less, Entry("exact", Kind.EXACT)]


# How bridges of a sweep begin and are used.
STARTS: Final[dict[str, dict[str, Any]]] = {
    "orthogonal": {"bridge_start": "orthogonal"},
    "normal": {"bridge_start": "normal"},
    "norm": {"bridge_start": "orthogonal", "bridge_norm": True},
    "product": {"bridge_start": "orthogonal", "bridge_product": True},
    "warm": {"bridge_start": "orthogonal", "bridge_temperature": 0.3},
}


def bridge_entries(counts: Sequence[int], starts: Sequence[str]) -> list[Entry]:
    """COLD, then BEA alone with so many bridges, by starts of ``STARTS``: orthogonal or normal vectors, ``norm``:
    through a layer norm, ``product``: read-outs enter multiplied with the item as well, ``warm``: temperature .3."""
    found = [COLD]
    for start in starts:
        options = {"parts": (Part.BEA,), **STARTS[start]}
        found += [Entry(f"{start} {n}", choices={**options, "bridges": n}) for n in counts]
    return found


def signature_entries(bits: Sequence[int], codes: Sequence[int]) -> list[Entry]:
    """COLD, the exact bound, then forms by bits: softmax attention over signatures (judged only), linear, tiers, both,
    and tiers of M codewords."""
    entries = [COLD, Entry("exact", Kind.EXACT, {"parts": (Part.TIERS,)})]
    for width in bits:
        forms: dict[str, tuple[tuple[Part, ...], int]] = {
            "linear": ((Part.LSH,), 0),
            "tiers": ((Part.TIERS,), 0),
            "linear+tiers": ((Part.LSH, Part.TIERS), 0),
        }
        forms |= {f"coded {m}": ((Part.TIERS,), m) for m in codes}
        attention = {"parts": (), "signature_bits": width}
        entries.append(Entry(f"attention {width}", Kind.HAMMING, attention))
        entries += [
            Entry(f"{form} {width}", choices={"parts": parts, "codes": m, "signature_bits": width})
            for form, (parts, m) in forms.items()
        ]
    return entries


def run_sweep(
    entries: Sequence[Entry], data: Dataset, recipe: Recipe, seed: int, on_model: OnModel | None = None
) -> list[dict[str, Any]]:
    """Train and judge every entry -> one record each: config choices, metrics, paired difference to the first entry,
    cost, bridge report, seconds. Raises ``NonFiniteError`` naming the entry and seed that diverged: a mean over the
    other seeds would look like that model's."""
    records: list[dict[str, Any]] = []
    first: Judged | None = None
    for entry in entries:
        if on_model is not None:
            on_model(f"{entry.name}, seed {seed}", len(records), len(entries))
        trainer = Trainer(data, "sweep", replace(recipe, seed=seed), kind=entry.kind, **entry.choices)
        try:
            version = trainer.run()
        except NonFiniteError as error:
            raise NonFiniteError(f"{entry.name}, seed {seed}: {error.what}", mend=error.mend) from None
        served = Served(version, data)
        judged = judge(served, data)
        first = first or judged
        records.append(
            {
                "model": entry.name,
                "kind": entry.kind.value,
                "choices": {name: _plain(value) for name, value in entry.choices.items()},
                "seed": seed,
                "data": data.name,
                "metrics": {name: metric._asdict() for name, metric in judged.metrics().items()},
                "difference": {name: metric._asdict() for name, metric in judged.minus(first).items()},
                "online_ms_per_10k": online_ms(version, served.rows, served.units),
                "online_mflop_per_10k": mflop(version.config),
                "bridges": version.metrics["bridges"],
                "seconds": version.metrics["seconds"],
            }
        )
    return records


def _plain(value: Any) -> Any:
    return [str(part) for part in value] if isinstance(value, tuple) else value
