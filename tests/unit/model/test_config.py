"""A config that cannot work is refused when it is made or read."""

from __future__ import annotations

import msgspec
import pytest

from aif_stream.errors import ArtefactError
from aif_stream.model.config import Field, ModelConfig
from tests.model_builders import small_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "must be positive"),
        ({"content_width": -1}, "must be positive"),
        ({"width": 33}, "no multiple of heads"),
        ({"signature_bits": 512}, "at most 64 tiers and 256"),
        ({"signature_bits": 65}, "multiple of 8"),
        ({"tier_groups": ((1,), (1, 2))}, "name a kind twice"),
        ({"tier_groups": ((9,),)}, "one that is none"),
        ({"tier_bounds": (0.5,)}, "8 tiers need 7 rising bounds"),
        ({"tiers": 3, "tier_bounds": (0.6, 0.5)}, "3 tiers need 2 rising bounds"),
        ({"second_key": "brand"}, "no label field"),
        ({"codes": 16, "parts": ("sim",)}, "need the part tiers"),
        ({"codes": 16, "kind": "exact"}, "has no codes"),
        ({"tiers": 65}, "at most 64 tiers"),
        ({"item_fields": (Field("a", "label"), Field("a", "number"))}, "named twice: a, a"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        msgspec.convert(msgspec.to_builtins(ModelConfig()) | msgspec.to_builtins(change), ModelConfig)


def test_a_config_survives_json() -> None:
    config = small_config()
    assert msgspec.json.decode(msgspec.json.encode(config), type=ModelConfig) == config
