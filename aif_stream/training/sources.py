"""Data sets by name, as the command line gives them: ``movielens:DIR``, ``taobao:FILE``, ``events:DIR`` …"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset
from aif_stream.training.events import read_events
from aif_stream.training.movielens import MovieLens
from aif_stream.training.ratings import read_ratings
from aif_stream.training.records import OnRead
from aif_stream.training.synthetic import Synthetic
from aif_stream.training.taobao import read_taobao

_FORMS: Final = (
    "give movielens:DIR, taobao:FILE.csv, events:DIR (with a mapping.toml)"
    " or synthetic:users=U,items=I,impressions=N,seed=S[,history=L,drift=…,updates=…,bea=…,bare=…]"
)
_DEFAULTS: Final = {"users": 2_000, "items": 20_000, "impressions": 200_000, "seed": 0, "history": 100}
_KNOBS: Final = {"drift": 0.5, "updates": 0.0, "bea": 0.0, "bare": 0.0}  # of training/planted.py


def open_data(spec: str, on_read: OnRead | None = None) -> Dataset:
    """Read or generate a data set. Raises ``TrainingDataError`` saying what is wrong and what to give."""
    kind, _, rest = spec.partition(":")
    path = Path(rest).expanduser()
    if kind == "movielens" and rest:
        _directory(path, "give MovieLens as RecBole (*.inter) or GroupLens (ratings.dat, ratings.csv) has it")
        if any((path / name).exists() for name in ("ratings.dat", "ratings.csv")):
            return read_ratings(path, on_read)
        return MovieLens(path).dataset()
    if kind == "taobao" and rest:
        return read_taobao(path, on_read)
    if kind == "events" and rest:
        _directory(path, "give a directory with a mapping.toml")
        return read_events(path, on_read)
    if kind == "synthetic":
        sizes, knobs = _sizes(spec, rest)
        generator = Synthetic(sizes["users"], sizes["items"], sizes["seed"], **knobs)
        return generator.dataset(sizes["impressions"], sizes["history"], _name(sizes, knobs))
    raise TrainingDataError(f"{spec!r} names no data set", mend=_FORMS)


def _directory(path: Path, mend: str) -> None:
    if not path.is_dir():
        raise TrainingDataError(f"{path} is no directory", mend=mend)


def _sizes(spec: str, rest: str) -> tuple[dict[str, int], dict[str, float]]:
    """Whole numbers, then knobs."""
    sizes, knobs = dict(_DEFAULTS), dict(_KNOBS)
    for part in filter(None, rest.split(",")):
        name, _, text = part.partition("=")
        if name in sizes and text.isdecimal():
            sizes[name] = int(text)
        elif name in knobs and text.replace(".", "", 1).isdecimal():
            knobs[name] = float(text)
        else:
            raise TrainingDataError(f"{spec!r}: {part!r} is not understood", mend=_FORMS)
    if min(sizes["users"], sizes["items"]) < 1 or sizes["impressions"] < 1000:
        raise TrainingDataError(f"{spec!r} is too small", mend="at least 1 user, 1 item and 1,000 impressions")
    return sizes, knobs


def _name(sizes: dict[str, int], knobs: dict[str, float]) -> str:
    """The spec that gives the same data; what is as by default is left out, but for the sizes that everybody asks."""
    always = ("users", "items", "impressions", "seed")
    parts = [f"{name}={value}" for name, value in sizes.items() if name in always or value != _DEFAULTS[name]]
    parts += [f"{name}={value:g}" for name, value in knobs.items() if value != _KNOBS[name]]
    return "synthetic:" + ",".join(parts)
