"""Which of this server's facts are in Redis, and what has to go when there is no room: the oldest answers first, a
user's part with the last answer that needs it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


class Gone(NamedTuple):
    """What is to be dropped now. What has expired by itself is not among it."""

    answers: list[str]
    users: list[str]


class _Answer(NamedTuple):
    request_id: str
    until_s: float
    size_bytes: int
    user: str


@dataclass(slots=True)
class _User:
    size_bytes: int
    answers: int = 0


@dataclass(slots=True)
class KeptFacts:
    """At most ``limit_bytes``; each answer for ``keep_s``. Times are monotonic."""

    limit_bytes: int
    keep_s: float
    nbytes: int = 0
    _answers: deque[_Answer] = field(default_factory=deque)
    _users: dict[str, _User] = field(default_factory=dict)

    def knows(self, user: str) -> bool:
        """Whether a user's part of this name was written and is needed still."""
        return user in self._users

    def make_room(self, size_bytes: int, user: str, user_bytes: int, now_s: float) -> Gone:
        """Forget what has expired, and the oldest until there is room for one more answer with its user's part."""
        gone, users = list[str](), list[str]()
        while self._answers and (self._answers[0].until_s < now_s or self._short(size_bytes, user, user_bytes)):
            oldest = self._answers.popleft()
            self.nbytes -= oldest.size_bytes
            alone = self._release(oldest.user)
            if oldest.until_s >= now_s:
                gone.append(oldest.request_id)
                users += [oldest.user] if alone else []
        return Gone(gone, users)

    def add(self, request_id: str, size_bytes: int, user: str, user_bytes: int, now_s: float) -> None:
        """An answer is in Redis, and its user's part ("": it has none)."""
        self._answers.append(_Answer(request_id, now_s + self.keep_s, size_bytes, user))
        self.nbytes += size_bytes
        if user:
            if user not in self._users:
                self._users[user] = _User(user_bytes)
                self.nbytes += user_bytes
            self._users[user].answers += 1

    def _short(self, size_bytes: int, user: str, user_bytes: int) -> bool:
        more = size_bytes + (user_bytes if user and user not in self._users else 0)
        return self.nbytes + more > self.limit_bytes

    def _release(self, user: str) -> bool:
        """One answer fewer needs this part; whether that was the last."""
        if not user:
            return False
        part = self._users[user]
        part.answers -= 1
        if part.answers:
            return False
        self.nbytes -= part.size_bytes
        del self._users[user]
        return True
