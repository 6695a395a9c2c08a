"""Reports of sweeps: bridges, signatures, ladder. Verdicts are made of the numbers, so they say what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aif_stream.training.plots import Plot, Point, Series
from aif_stream.training.report import Report, Table
from aif_stream.training.summary import INTERVALS, Records, between, means, shown

Line = Mapping[str, Any]

_COST: Final = (
    "ms / 10k: measured CPU milliseconds of one thread from user side and rows to 10,000 scores, history of 1,000;"
    " MFLOP / 10k: counted, without popcounts."
)


def bridges_report(records: Records) -> Report:
    """Gain, perplexity and read-out cosine by the number of bridges, a line for each start."""
    lines = means(records)
    bea = [line for line in lines if "bridges" in line["choices"]]
    plots = [
        _by_bridges("gain", bea, "gain", "What bridges add", "GAUC less COLD's", (0.0, "COLD")),
        _by_bridges("perplexity", bea, "perplexity", "Bridges that an item uses", "perplexity of its weights", None),
        _by_bridges("cosine", bea, "readout_cosine", "Read-outs alike? 1: collapsed", "cosine of two read-outs", None),
    ]
    return Report(
        title="Bridges: how many pay, and do they collapse?",
        question="BEA alone over COLD, by the number of bridges and how they start (paper: gains reverse).",
        verdict=[_best_count(bea, records), _collapse(bea)],
        plots=plots,
        tables=[_table(lines)],
        notes=[INTERVALS, "Perplexity and cosine: mean over seeds; bars from the smallest to the largest seed.", _COST],
    )


def _by_bridges(
    name: str, lines: Sequence[Line], key: str, title: str, y: str, level: tuple[float, str] | None
) -> Plot:
    series: dict[str, list[Point]] = {}
    for line in lines:
        if line[key] is not None:
            value = line[key]
            point = Point(line["choices"]["bridges"], value["value"], value["low"], value["high"])
            series.setdefault(_start(line), []).append(point)
    drawn = [Series(start, points) for start, points in series.items()]
    return Plot(name, title, "bridges n", y, drawn, scale="log2", level=level)


def _start(line: Line) -> str:
    return str(line["model"]).rpartition(" ")[0]


def _best_count(lines: Sequence[Line], records: Records) -> str:
    """Where the gain is largest, whether it is one, and whether more bridges lose again."""
    best = max(lines, key=lambda line: line["gain"]["value"])
    count, gain = best["choices"]["bridges"], best["gain"]
    said = f"The largest gain over COLD is {shown(gain, 4, True)} GAUC, at n = {count} ({_start(best)})"
    if gain["low"] <= 0:
        return f"{said}: its interval holds zero, so on this data BEA is not shown to pay at any n, and no inflection."
    most = max((line for line in lines if _start(line) == _start(best)), key=lambda line: line["choices"]["bridges"])
    if most is best:
        return f"{said}, the largest n that was tried: no reversal within this range."
    loss = between(records, str(most["model"]), str(best["model"]))
    n = most["choices"]["bridges"]
    verb = "is lost again" if loss["high"] < 0 else "differs from it by no more than noise"
    return f"{said}; at n = {n} it {verb} ({shown(loss, 4, True)}, paired)."


def _collapse(lines: Sequence[Line]) -> str:
    words = []
    for start in dict.fromkeys(_start(line) for line in lines):
        mine = [line for line in lines if _start(line) == start and line["readout_cosine"] is not None]
        if mine:
            cosines = [line["readout_cosine"]["value"] for line in mine]
            words.append(f"{start} {min(cosines):.2f} … {max(cosines):.2f}")
    return f"Cosine between two read-outs of a user (1: all the same), from the least to the most: {'; '.join(words)}."


def signatures_report(records: Records) -> Report:
    """Quality against cost: bits by form, between COLD and the exact bound."""
    lines = means(records)
    return Report(
        title="Signatures: quality against cost",
        question="Signature bits by form of the term (linear, SimTier, both, coded tiers), between COLD and the bound.",
        verdict=_kept(lines),
        plots=[*_frontiers(lines), _by_bits(lines)],
        tables=[_table(lines)],
        notes=[INTERVALS, _COST],
    )


def ladder_report(records: Records) -> Report:
    """Parts added and removed."""
    first, *others = means(records)  # COLD is trained first, to be compared with, and stands above its own rungs
    below = 1 + next((n for n, line in enumerate(others) if line["model"] == "cold, profile alone"), -1)
    lines = [*others[:below], first, *others[below:]]
    names = [str(line["model"]) for line in lines]
    ticks = [(float(-n), name) for n, name in enumerate(names)]
    return Report(
        title="Ladder: what each part adds, and what its absence costs",
        question="Two-tower → COLD (profile alone) → + user side (cold) → + BEA → + linear LSH → + SimTier → + SIM;"
        " and AIF without each.",
        verdict=[*_kept(lines), _absences(records, names)],
        plots=[
            _rungs("gain", "What each model gains over COLD", "GAUC less COLD's", lines, ticks),
            _costs("cost", "What each model costs online", lines, ticks),
        ],
        tables=[_table(lines)],
        notes=[INTERVALS, _COST],
    )


def _rungs(name: str, title: str, y: str, lines: Sequence[Line], ticks: Sequence[tuple[float, str]]) -> Plot:
    points = [
        Point(at, line["gain"]["value"], line["gain"]["low"], line["gain"]["high"])
        for (at, _), line in zip(ticks, lines, strict=True)
    ]
    return Plot(name, title, "", y, [Series(y, points, line=False)], ticks=ticks, level=(0.0, ""), across=True)


def _costs(name: str, title: str, lines: Sequence[Line], ticks: Sequence[tuple[float, str]]) -> Plot:
    found = [(at, line["online_ms_per_10k"]) for (at, _), line in zip(ticks, lines, strict=True)]
    points = [Point(at, ms, ms, ms) for at, ms in found]
    y = "measured CPU ms per 10,000 candidates, history of 1,000"
    return Plot(name, title, "", y, [Series(y, points, line=False)], "log10", ticks, across=True)


def _absences(records: Records, names: Sequence[str]) -> str:
    """What AIF loses without each part, paired within seeds."""
    if "aif" not in names:
        return ""
    less = [name for name in names if name.startswith("aif −")]
    gaps = {name: between(records, name, "aif") for name in less}
    said = ", ".join(f"{name[6:]} {shown(gap, 4, True)}" for name, gap in gaps.items())
    return f"AIF without one part, less AIF (paired within seeds): {said}."


def _kept(lines: Sequence[Line]) -> list[str]:
    """The best served model, its share of the bound's gain, and the cheapest one that is as good."""
    bound = next((line for line in lines if line["model"] == "exact"), None)
    served = [line for line in lines if line["kind"] not in {"exact", "din", "hamming", "cold"}]
    best = max(served, key=lambda line: line["gain"]["value"])
    said = (
        f"Best: {best['model']}, {shown(best['gain'], 4, True)} GAUC over COLD at {best['online_ms_per_10k']:.2g} ms"
        " per 10,000 candidates"
    )
    if bound is not None and bound["gain"]["value"] > 0:
        share = best["gain"]["value"] / bound["gain"]["value"]
        cost = best["online_ms_per_10k"] / bound["online_ms_per_10k"]
        said += (
            f"; the exact bound has {shown(bound['gain'], 4, True)} at {bound['online_ms_per_10k']:.3g} ms:"
            f" {share:.0%} of its gain for {cost:.1%} of its time"
        )
    near = [line for line in served if line["gain"]["value"] >= 0.95 * best["gain"]["value"]]
    cheap = min(near, key=lambda line: line["online_ms_per_10k"])
    return [
        f"{said}.",
        f"Cheapest with at least 95 % of the best gain: {cheap['model']}, {shown(cheap['gain'], 4, True)} at"
        f" {cheap['online_ms_per_10k']:.2g} ms and {cheap['online_mflop_per_10k']:.3g} MFLOP.",
    ]


def _form(line: Line) -> tuple[str, str]:
    """(form, bits) of a signature model, (name, "") of others."""
    form, _, bits = str(line["model"]).rpartition(" ")
    return (form, bits) if bits.isdigit() else (str(line["model"]), "")


def _frontier_place(line: Line) -> tuple[str, str]:
    """Series and label in the frontier: forms by bits, but coded tiers of so many bits by M."""
    form, bits = _form(line)
    if not form.startswith("coded "):
        return form, bits
    words = int(form.split()[1])
    return f"coded, {bits} bits, by M", str(words) if words < 1024 else f"{words // 1024}k"


def _frontiers(lines: Sequence[Line]) -> list[Plot]:
    """GAUC against measured time and against counted operations."""
    plots = []
    axes = (("online_ms_per_10k", "ms", "measured CPU ms"), ("online_mflop_per_10k", "mflop", "counted MFLOP"))
    for key, name, words in axes:
        series: dict[str, list[Point]] = {}
        for line in lines:
            form, label = _frontier_place(line)
            gauc = line["gauc"]
            series.setdefault(form, []).append(Point(line[key], gauc["value"], gauc["low"], gauc["high"], label))
        drawn = [Series(form, points, line=len(points) > 1) for form, points in series.items()]
        x = f"{words} per 10,000 candidates, history of 1,000"
        plots.append(Plot(f"frontier_{name}", "Quality against online cost", x, "GAUC", drawn, scale="log10"))
    return plots


def _by_bits(lines: Sequence[Line]) -> Plot:
    series: dict[str, list[Point]] = {}
    for line in lines:
        form, bits = _form(line)
        if bits:
            gain = line["gain"]
            series.setdefault(form, []).append(Point(int(bits), gain["value"], gain["low"], gain["high"]))
    drawn = [Series(form, points) for form, points in series.items()]
    return Plot("bits", "What signatures add, by width", "bits", "GAUC less COLD's", drawn, "log2", level=(0.0, "COLD"))


def _table(lines: Sequence[Line]) -> Table:
    said = any(line["perplexity"] is not None for line in lines)
    names = ["model", "seeds", "GAUC", "less COLD, paired", "HR@100", "ms / 10k", "MFLOP / 10k"]
    rows = [
        [
            line["model"],
            line["seeds"],
            shown(line["gauc"]),
            shown(line["gain"], 4, True),
            shown(line["hr@100"], 3),
            line["online_ms_per_10k"],
            line["online_mflop_per_10k"],
            *(
                (None if line[key] is None else line[key]["value"] for key in ("perplexity", "readout_cosine"))
                if said
                else ()
            ),
        ]
        for line in lines
    ]
    return Table("Figures", [*names, *(("perplexity", "read-out cosine") if said else ())], rows)
