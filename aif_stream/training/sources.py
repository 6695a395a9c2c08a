"""Data sets by name, as the command line gives them: ``movielens:DIR``, ``synthetic:users=U,items=I,…``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aif_stream.errors import TrainingDataError
from aif_stream.training.dataset import Dataset
from aif_stream.training.movielens import MovieLens
from aif_stream.training.synthetic import Synthetic

_FORMS: Final = "give movielens:DIR or synthetic:users=U,items=I,impressions=N,seed=S"
_DEFAULTS: Final = {"users": 2_000, "items": 20_000, "impressions": 200_000, "seed": 0}


def open_data(spec: str) -> Dataset:
    """Read or generate a data set. Raises ``TrainingDataError`` saying what is wrong and what to give."""
    kind, _, rest = spec.partition(":")
    if kind == "movielens" and rest:
        directory = Path(rest).expanduser()
        if not directory.is_dir():
            raise TrainingDataError(
                f"{directory} is no directory", mend="give RecBole's ml-100k (*.inter, *.item, *.user)"
            )
        return MovieLens(directory).dataset()
    if kind == "synthetic":
        sizes = _sizes(spec, rest)
        generator = Synthetic(sizes["users"], sizes["items"], sizes["seed"])
        return generator.dataset(sizes["impressions"])
    raise TrainingDataError(f"{spec!r} names no data set", mend=_FORMS)


def _sizes(spec: str, rest: str) -> dict[str, int]:
    sizes = dict(_DEFAULTS)
    for part in filter(None, rest.split(",")):
        name, _, text = part.partition("=")
        if name not in sizes or not text.isdecimal():
            raise TrainingDataError(f"{spec!r}: {part!r} is not understood", mend=_FORMS)
        sizes[name] = int(text)
    if min(sizes["users"], sizes["items"]) < 1 or sizes["impressions"] < 1000:
        raise TrainingDataError(f"{spec!r} is too small", mend="at least 1 user, 1 item and 1,000 impressions")
    return sizes
