"""Facts stay within their bound, the oldest answers go first, and no answer outlives its user's part."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aif_stream.domain.facts import UserInputs, pack_user
from aif_stream.domain.history import ENTRY
from aif_stream.online.facts_keeper import UserNames
from aif_stream.online.kept_facts import KeptFacts

LIMIT, KEEP_S = 1000, 10.0
USERS = {"": 0, "a": 300, "b": 200, "c": 50}


@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from(sorted(USERS)), st.floats(0.0, 6.0)), max_size=40))
def test_within_the_bound_and_every_answer_has_its_users_part(steps: list[tuple[int, str, float]]) -> None:
    kept, now_s = KeptFacts(LIMIT, KEEP_S), 0.0
    answers: dict[str, tuple[float, int, str]] = {}
    users: set[str] = set()
    for number, (size, user, passed_s) in enumerate(steps):
        now_s += passed_s
        gone = kept.make_room(size, user, USERS[user], now_s)
        for name in [name for name, (until_s, _, _) in answers.items() if until_s < now_s]:
            assert name not in gone.answers, "expired by itself"
            del answers[name]
        for name in gone.answers:
            assert name == next(iter(answers)), "the oldest first"
            del answers[name]
        users -= set(gone.users)
        users.add(user)
        kept.add(str(number), size, user, USERS[user], now_s)
        answers[str(number)] = (now_s + KEEP_S, size, user)
        needed = {each[2] for each in answers.values()} - {""}
        assert needed <= users
        assert {name for name in USERS if kept.knows(name)} == needed
        assert kept.nbytes == sum(each[1] for each in answers.values()) + sum(USERS[name] for name in needed)
        assert kept.nbytes <= LIMIT or len(answers) == 1


def test_a_part_has_one_name_by_its_content_and_server() -> None:
    def user(key: int) -> UserInputs:
        entries = np.array([(8, key)], ENTRY)
        return UserInputs(None, entries, np.zeros(1, "V4"), entries[:0])

    names, elsewhere = UserNames(), UserNames()
    one, same, other = user(1), user(1), user(2)
    assert pack_user(one) == pack_user(same)
    assert names.of(one) == names.of(one) == names.of(same)
    assert len({names.of(one), names.of(other), elsewhere.of(one)}) == 3
    none = np.empty(0, ENTRY)
    assert names.of(UserInputs(None, none, none, none)) == ""
