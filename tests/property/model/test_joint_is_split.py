"""Joint = split for any user, history, mask and items."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aif_stream.domain.events import ItemUpserted
from aif_stream.model.config import Kind
from aif_stream.model.version import ModelVersion
from tests.model_builders import CONTENT_WIDTH, VARIANTS, make_history, small_version
from tests.precision import assert_close, score_bound

VERSIONS: dict[tuple[Kind, str], ModelVersion] = {}
FORMS = [*((kind, "") for kind in Kind), *((Kind.AIF, name) for name in VARIANTS), (Kind.EXACT, "second key")]

texts = st.sampled_from(["ada", "bob", "new", "red", "big", "oslo", "unheard", ""])
attributes = st.fixed_dictionaries(
    {},
    optional={
        "brand": texts | st.integers(0, 9) | st.lists(texts, max_size=1),
        "tags": texts | st.lists(texts, max_size=4),
        "price": st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-100, 100) | texts,
        "unknown field": texts,
    },
)
vectors = st.none() | st.lists(
    st.floats(-10, 10, allow_nan=False, width=32), min_size=CONTENT_WIDTH, max_size=CONTENT_WIDTH
)
unusable = st.just([1.0])
items = st.builds(
    ItemUpserted,
    item_id=st.integers(0, 2**62) | st.text(min_size=1, max_size=8),
    category=st.sampled_from(["tea", "books", "lamps", "elsewhere"]),
    attributes=attributes,
    content_vector=vectors | unusable,
)
profiles = st.none() | st.fixed_dictionaries(
    {}, optional={"city": st.sampled_from(["oslo", "rome", "ur"]), "age": st.integers(0, 120) | texts}
)


def version_of(kind: Kind, variant: str = "") -> ModelVersion:
    if (kind, variant) not in VERSIONS:
        torch.set_num_threads(1)
        VERSIONS[kind, variant] = small_version(kind, **VARIANTS[variant])
    return VERSIONS[kind, variant]


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    profile=profiles,
    candidates=st.lists(items, min_size=1, max_size=8),
    seen=st.lists(st.tuples(items, st.booleans()), max_size=50),
    seed=st.integers(0, 99),
)
def test_joint_equals_split(
    form: tuple[Kind, str],
    profile: dict[str, str | int] | None,
    candidates: list[ItemUpserted],
    seen: list[tuple[ItemUpserted, bool]],
    seed: int,
) -> None:
    version = version_of(*form)
    dtype = version.layout.dtype_f32
    history_items = [item for item, _ in seen]
    found = np.array([here for _, here in seen], dtype=bool)
    history = make_history(history_items, seed)
    rows = version.item_side(history_items, dtype).rows
    rows[~found] = np.zeros((), dtype)
    units = version.units(history_items), version.units(candidates)
    user = version.user_side(profile, history, rows, found, units[0])
    scores = version.score(user, version.item_side(candidates, dtype).rows, units[1])
    joint = version.joint(profile, history, [item if here else None for item, here in seen], candidates)
    assert_close(scores, joint, score_bound(version.config, joint))


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(items, min_size=2, max_size=12), at=st.integers(0, 11))
def test_a_row_depends_on_its_item_alone(batch: list[ItemUpserted], at: int) -> None:
    version = version_of(Kind.AIF)
    at %= len(batch)
    whole = version.item_side(batch, version.layout.dtype).rows
    copy = msgspec.json.decode(msgspec.json.encode(batch[at]), type=ItemUpserted)
    assert version.item_side([copy], version.layout.dtype).rows[0].tobytes() == whole[at].tobytes()
