"""Do the behaviors that an explanation names move the score, and is a planted cause among the first three?

    OMP_NUM_THREADS=1 python experiments/explain_faithfulness.py [--movielens DIR] [--users 300] [--out FILE]
        [--figures docs/figures] [--models build/faithfulness]

Deletion: for one test request of each of N users, the first item of an answer (the request's impressions and 60 drawn
items) is explained; the m behaviors named most important are taken out of the history together, and so are m drawn
ones (mean of 10 draws) and the m newest. |change of the score|, paired, intervals by bootstrap over users.

Planted cause, synthetic data: a test user's behaviors of one cluster are taken away, then one place, drawn, gets an
item of the style of an item x of that cluster: by the generator's truth the one behavior that speaks for x. It counts
as found when it is among the first three that the explanation of x names. And without a change of histories, of an
item in the style of one of the user's long-term interests: whether one of the first three is a behavior of that style.

Trains what is not in ``--models`` (2 minutes each on a quiet core); the rest takes about 2 minutes of CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from aif_stream.explain.case import Case, open_case
from aif_stream.explain.native import left_out, nearest
from aif_stream.model.artefact import load, save
from aif_stream.training.dataset import Dataset, Split
from aif_stream.training.evaluate import Served
from aif_stream.training.loop import Trainer
from aif_stream.training.planted import INTERESTS
from aif_stream.training.plots import Plot, Point, Series, draw
from aif_stream.training.report import about
from aif_stream.training.sources import open_data
from aif_stream.training.synthetic import Synthetic

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.explain_cases import answer

F64 = NDArray[np.float64]
TAKEN: Final = (1, 2, 3, 5, 8)
WAYS: Final = ("named", "newest", "random")
WORDS: Final = {"named": "named most important", "newest": "newest", "random": "drawn"}
DRAWS: Final = 10
SIZES: Final = (1000, 5000, 11)  # users, items, seed
SPEC: Final = "synthetic:users={},items={},impressions=100000,seed={}".format(*SIZES)


def named(case: Case) -> list[int]:
    """Places of the history in the order in which the explanation names them."""
    effects = left_out(case, nearest(case))
    return sorted(effects, key=lambda place: -abs(effects[place]))


def served_of(spec: str, models: Path) -> Served:
    """A version trained on the data, once."""
    data, kept = open_data(spec), models / spec.partition(":")[0]
    if not (kept / "manifest.json").exists():
        save(kept, Trainer(data, "faithfulness").run())
    return Served(load(kept), data)


def requests_of(data: Dataset, users: int, random: np.random.Generator) -> list[int]:
    """One test request of each of so many users whose history is long enough to leave something."""
    table, test = data.requests, data.requests.of(Split.TEST)
    test = test[table.end[test] - table.begin[test] >= 2 * max(TAKEN)]
    test = random.permutation(test)
    _, first = np.unique(table.user[test], return_index=True)
    return [int(request) for request in random.permutation(test[first])[:users]]


def deletion(served: Served, data: Dataset, users: int) -> dict[str, Any]:
    """The curves, and whether the 24 that are tried hold the one that matters most."""
    random = np.random.default_rng(0)
    moved: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    among = []
    for request in requests_of(data, users, random):
        history, seen = data.history(request)
        shown = data.requests.item[data.requests.first[request] : data.requests.first[request + 1]]
        candidates = np.unique(np.concatenate([shown, random.integers(0, len(data.items), 60)]))
        facts = answer(served, data.profiles[data.requests.user[request]], history, seen, candidates)
        case = open_case(served.version, facts, facts.head.items[0].item_id)
        order, count = named(case), len(history)

        def change(places: list[int], case: Case = case) -> float:
            return abs(case.recomputed - float(case.scores(case.without(places), case.row)[0]))

        moved["named"].append([change(order[:m]) for m in TAKEN])
        moved["newest"].append([change(list(range(count - m, count))) for m in TAKEN])
        draws = [random.permutation(count).tolist() for _ in range(DRAWS)]
        moved["random"].append([float(np.mean([change(draw[:m]) for draw in draws])) for m in TAKEN])
        if len(among) < 100:
            every = left_out(case, list(range(count)))
            among.append(max(every, key=lambda place: abs(every[place])) in order[:3])
    curves = {way: np.array(values) for way, values in moved.items()}
    return {
        "users": len(moved["named"]),
        "moved_logit": {way: summary(values) for way, values in curves.items()},
        "named_less_random": summary(curves["named"] - curves["random"]),
        "named_less_newest": summary(curves["named"] - curves["newest"]),
        "named_moves_more_than_random": share(curves["named"] > curves["random"]),
        "most_important_of_the_whole_history_among_first_3": round(float(np.mean(among)), 4),
    }


def summary(values: F64) -> dict[str, list[float]]:
    """(users, m) → m: mean and its 95 % bootstrap interval over users."""
    random = np.random.default_rng(1)
    drawn = values[random.integers(0, len(values), (1000, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    mean = values.mean(axis=0)
    return {str(m): [round(float(v[n]), 4) for v in (mean, low, high)] for n, m in enumerate(TAKEN)}


def share(yes: NDArray[np.bool_]) -> dict[str, float]:
    return {str(m): round(float(yes[:, n].mean()), 4) for n, m in enumerate(TAKEN)}


def planted(served: Served, data: Dataset, users: int) -> dict[str, Any]:
    """Whether the one behavior of the item's style is named, and chance beside it."""
    truth = Synthetic(*SIZES).truth
    random, items = np.random.default_rng(2), np.arange(1, SIZES[1] + 1)
    cluster, style = truth.cluster(items), truth.style(items, truth.state(items, 1.0))
    places, chance = [], []
    for request in requests_of(data, users, random):
        history, seen = data.history(request)
        while True:
            own = int(random.integers(len(items)))
            alike = np.flatnonzero((cluster == cluster[own]) & (style == style[own]) & (items - 1 != own))
            if len(alike):
                break
        keep = cluster[seen] != cluster[own]
        history, seen = history[keep].copy(), seen[keep].copy()
        at, cause = int(random.integers(len(seen))), int(random.choice(alike))
        history["key"][at], seen[at] = items[cause], cause
        candidates = np.unique(np.append(random.integers(0, len(items), 60), own))
        profile = data.profiles[data.requests.user[request]]
        facts = answer(served, profile, history, seen, candidates, first=own)
        order = named(open_case(served.version, facts, str(own)))
        places.append(order.index(at) + 1 if at in order else 0)
        chance.append(3 / len(seen))
    found = np.isin(places, (1, 2, 3)).astype(np.float64)
    return {
        "users": len(places),
        "found_in_first_3": interval(found),
        "by_chance": round(float(np.mean(chance)), 4),
        "place": {str(n): places.count(n) for n in (1, 2, 3)} | {"later or not": int((found == 0).sum())},
    }


def own_histories(served: Served, data: Dataset, users: int) -> dict[str, Any]:
    """Without a change: of items with a style that the user was drawn to, whether one of that style is named."""
    truth = Synthetic(*SIZES).truth
    random, items = np.random.default_rng(3), np.arange(1, SIZES[1] + 1)
    cluster, style = truth.cluster(items), truth.style(items, truth.state(items, 1.0))
    hits, chance = [], []
    for request in requests_of(data, users, random):
        history, seen = data.history(request)
        user = data.requests.user[request : request + 1] + 1
        wanted = truth.interests(user, np.full(1, 0.9))[0, int(random.integers(INTERESTS))]
        alike = np.flatnonzero((cluster == wanted[0]) & (style == wanted[1]))
        causes = np.flatnonzero((cluster[seen] == wanted[0]) & (style[seen] == wanted[1]))
        alike = np.setdiff1d(alike, seen)
        if not len(alike) or not len(causes):
            continue
        own = int(random.choice(alike))
        candidates = np.unique(np.append(random.integers(0, len(items), 60), own))
        profile = data.profiles[data.requests.user[request]]
        facts = answer(served, profile, history, seen, candidates, first=own)
        order = named(open_case(served.version, facts, str(own)))
        hits.append(bool(np.isin(order[:3], causes).any()))
        chance.append(1.0 - (1.0 - len(causes) / len(seen)) ** 3)
    return {
        "users": len(hits),
        "found_in_first_3": interval(np.array(hits, np.float64)),
        "by_chance": round(float(np.mean(chance)), 4),
    }


def interval(values: F64) -> list[float]:
    """Mean and 95 % bootstrap interval."""
    random = np.random.default_rng(1)
    drawn = values[random.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    return [round(float(value), 4) for value in (values.mean(), *np.quantile(drawn, [0.025, 0.975]))]


def figure(name: str, found: dict[str, Any]) -> bytes:
    curves = found["moved_logit"]
    series = [Series(WORDS[way], [Point(int(m), *three) for m, three in curves[way].items()]) for way in WAYS]
    title = f"Taking out what is named moves the score ({name})"
    return draw(Plot(f"faithfulness__{name}", title, "behaviors taken out", "|change of the score|, logits", series))


@click.command()
@click.option("--movielens", default="", help="Directory of MovieLens 100K; without it that part is left out.")
@click.option("--users", default=150, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("experiments/results/explain_faithfulness.json"))
@click.option("--figures", type=click.Path(path_type=Path), default=Path("docs/figures"), show_default=True)
@click.option("--models", type=click.Path(path_type=Path), default=Path("build/faithfulness"), show_default=True)
def main(movielens: str, users: int, out: Path, figures: Path, models: Path) -> None:
    specs = {"synthetic": SPEC} | ({"movielens": f"movielens:{movielens}"} if movielens else {})
    machine = {key: value for key, value in about().items() if key in {"commit", "machine", "load_average"}}
    result: dict[str, Any] = {"synthetic": SPEC, **machine, "deletion": {}}
    for name, spec in specs.items():
        served = served_of(spec, models)
        data = open_data(spec)
        result["deletion"][name] = deletion(served, data, users)
        (figures / f"faithfulness__{name}.png").write_bytes(figure(name, result["deletion"][name]))
        if name == "synthetic":
            result["planted_cause"] = planted(served, data, users)
            result["planted_style_own_histories"] = own_histories(served, data, users)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
