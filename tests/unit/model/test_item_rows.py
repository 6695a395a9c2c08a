"""Item side: a row depends on its item alone; what a version cannot use is an invalid row with a reason."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from aif_stream.domain.events import ItemUpserted
from aif_stream.domain.row import HAS_CONTENT, NO_CATEGORY, VALID
from aif_stream.model.config import ModelConfig
from aif_stream.model.rows import ItemRows, at_places
from aif_stream.model.version import ModelVersion
from tests.model_builders import CONTENT_WIDTH, make_history, make_items, small_config, small_version


def rows_of(version: ModelVersion, items: list[ItemUpserted]) -> ItemRows:
    stamps = np.arange(len(items), dtype=np.uint64)
    return version.item_rows(items, stamps + 1000, stamps, computed_ms=5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    version, items = small_version(), make_items(203)
    whole = version.item_side(items, version.layout.dtype).rows
    for size in (1, 7, 64):
        parts = [
            version.item_side(items[at : at + size], version.layout.dtype).rows for at in range(0, len(items), size)
        ]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("used", [[], [2], [0, 3, 4, 6], list(range(7))])
def test_entries_at_places_are_whole_and_copied_only_where_some_are_missing(used: list[int]) -> None:
    rows, _ = rows_of(small_version(), make_items(7))
    places = np.array(used, dtype=np.intp)
    for entries in (rows, rows["sig"], rows["category"]):
        found = at_places(entries, places)
        assert (found.dtype, found.tobytes()) == (entries.dtype, entries[places].tobytes())
        assert (found is entries) == (len(used) == len(entries))


def test_stamps_and_layout() -> None:
    version, items = small_version(), make_items(4)
    rows, problems = rows_of(version, items)
    assert rows.dtype == version.layout.dtype
    assert rows["event_time_ms"].tolist() == [1000, 1001, 1002, 1003]
    assert rows["offset"].tolist() == [0, 1, 2, 3]
    assert rows["computed_ms"].tolist() == [5] * 4
    assert (rows["flags"] & VALID).all()
    assert not problems


def test_a_category_outside_the_vocabulary_is_no_category() -> None:
    version = small_version()
    known, unknown, number = (ItemUpserted(item_id=1, category=name) for name in ("books", "gardens", 7))
    rows, _ = rows_of(version, [known, unknown, number])
    assert rows["category"].tolist() == [1, NO_CATEGORY, NO_CATEGORY]
    assert (rows["flags"] == VALID).all()


def test_an_item_without_content_has_no_signature_and_is_valid() -> None:
    rows, problems = rows_of(small_version(), [ItemUpserted(item_id=1, category="tea")])
    assert rows["flags"][0] == VALID
    assert not rows["sig"].any()
    assert not problems


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"content_vector": [1.0] * (CONTENT_WIDTH + 1)}, "content-width"),
        ({"content_vector": []}, "content-width"),
        ({"content_vector": [1e300] * CONTENT_WIDTH}, "content-not-finite"),
        ({"attributes": {"price": "cheap"}}, "attribute-type:price"),
        ({"attributes": {"price": ["1"]}}, "attribute-type:price"),
        ({"attributes": {"price": 10**400}}, "attribute-type:price"),
        ({"attributes": {"price": float("nan")}}, "attribute-not-finite:price"),
        ({"attributes": {"brand": ["ada"]}}, "attribute-type:brand"),
    ],
)
def test_what_a_version_cannot_use_is_invalid_for_that_item_alone(change: dict[str, object], reason: str) -> None:
    items = make_items(3)
    items[1] = msgspec.structs.replace(items[1], **change)
    rows, problems = rows_of(small_version(), items)
    assert problems == {reason: 1}
    assert (rows["flags"] & VALID).tolist() == [VALID, 0, VALID]
    assert rows["flags"][1] == 0
    assert not rows["t"][1].any()
    assert not rows["sig"][1].any()
    rest, _ = rows_of(small_version(), [items[0]])
    assert rows["h"][0].tobytes() == rest["h"][0].tobytes()


def test_numbers_beyond_f16_are_refused_not_stored() -> None:
    version = small_version()
    state = version.net.state_dict()
    state["item_tower.share.weight"] *= 1e7
    rows, problems = rows_of(ModelVersion("loud", version.net), make_items(3))
    assert problems == {"beyond-f16": 3}
    assert not rows["flags"].any()


def test_numbers_are_labels_and_single_strings_are_sets() -> None:
    version = small_version()
    as_list, alone = (ItemUpserted(item_id=1, category="tea", attributes={"tags": tags}) for tags in (["red"], "red"))
    rows, problems = rows_of(version, [as_list, alone])
    assert rows["t"][0].tobytes() == rows["t"][1].tobytes()
    number, text = (ItemUpserted(item_id=1, category="tea", attributes={"brand": brand}) for brand in (7, "7"))
    rows, problems = rows_of(version, [number, text])
    assert rows["t"][0].tobytes() == rows["t"][1].tobytes()
    assert not problems


def test_an_empty_batch_gives_no_rows_and_no_scores() -> None:
    version = small_version()
    rows, problems = rows_of(version, [])
    assert rows.shape == (0,)
    assert not problems
    user = version.user_side(None, make_history([]), rows, np.zeros(0, dtype=bool))
    assert version.score(user, rows).shape == (0,)


def test_a_version_without_content_and_fields_still_makes_rows() -> None:
    version = ModelVersion.init(ModelConfig(), seed=1)
    rows, problems = rows_of(version, make_items(5))
    assert (rows["flags"] == VALID).all()
    assert not problems


def test_similar_content_has_similar_signatures() -> None:
    version = ModelVersion.init(msgspec.structs.replace(small_config(), signature_bits=256), seed=3)
    random = np.random.default_rng(0)
    base, noise, other = random.standard_normal((3, CONTENT_WIDTH))
    vectors = [base, base + 0.1 * noise, other, -base]
    rows, _ = rows_of(version, [ItemUpserted(item_id=1, category="tea", content_vector=list(v)) for v in vectors])
    equal = [256 - int(np.bitwise_count(rows["sig"][0] ^ rows["sig"][at]).sum()) for at in range(4)]
    assert (rows["flags"] & HAS_CONTENT).all()
    assert equal[0] == 256
    assert equal[1] > 225
    assert equal[3] == 0
    angle = torch.acos(torch.tensor(np.dot(base, other) / np.linalg.norm(base) / np.linalg.norm(other)))
    assert equal[2] / 256 == pytest.approx(1 - float(angle) / np.pi, abs=0.12)
