"""The one error tree of aif_stream.

AifError                     what happened, where, and the next step
├── SettingsError            a setting is wrong: names the variable
├── BadInput                 data from outside is wrong: names the field
│   └── BadEvent             … in an event: adds the dead-letter reason
├── TopicError               the broker's topics do not fit the contract
├── PublishError             an event could not be handed to Kafka
├── BusUnavailable           Kafka does not answer
├── IndexUnavailable         Redis does not answer, or its state forbids the command now
├── IndexRefused             the store refused a write or a read
│   ├── IndexDenied          … to this user: password or rights
│   └── VersionMissing       the store lists versions that this worker has not loaded
├── ArtefactError            a model directory is damaged or does not fit
├── VersionError             a model version cannot be used that way
├── Unexplainable            the facts of an answer, its version or its score are not to be had again
├── UpstreamError            retrieval failed, was slow, or answered nonsense
├── Overloaded               the server sheds this request
├── EmbeddedError            the development broker or Redis did not start
 ├── DataFolderError          the folder of `aif up --data` cannot be used
 │   └── DataFolderConflict   … because it was created with other options
 ├── TrainingDataError        a data set is unusable: names file, line and mend
 └── NonFiniteError           a model's loss, gradients, weights, rows or scores are not finite
"""

from __future__ import annotations


class AifError(Exception):
    """Base of everything that aif_stream raises on purpose.

    ``what`` says what happened and where (topic, partition, offset, item, version);
    ``mend`` is the next step for the reader and is printed after it.
    """

    def __init__(self, what: str, *, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what} → {self.mend}" if self.mend else self.what


class SettingsError(AifError):
    """A setting is missing or wrong; the message names the variable and its origin."""


class BadInput(AifError):
    """Data from outside is wrong. ``field`` is the path of the offending field ("" for the whole)."""

    def __init__(self, problem: str, *, field: str = "", mend: str = "") -> None:
        super().__init__(f"{field}: {problem}" if field else problem, mend=mend)
        self.field = field
        self.problem = problem


class BadEvent(BadInput):
    """An event cannot be used. ``reason`` is the short label of the dead letter and of its metric."""

    def __init__(self, reason: str, problem: str, *, field: str = "", mend: str = "") -> None:
        super().__init__(problem, field=field, mend=mend)
        self.reason = reason


class TopicError(AifError):
    """The broker's topics do not fit the contract in ``topics/``."""


class PublishError(AifError):
    """Kafka did not acknowledge an event."""


class BusUnavailable(AifError):
    """Kafka does not answer; callers back off and do not commit."""


class IndexUnavailable(AifError):
    """Redis does not answer, or cannot serve the command now (replica, loading, out of memory); callers back off and do
    not commit."""


class IndexRefused(AifError):
    """The store refused an operation (wrong type, foreign layout)."""


class IndexDenied(IndexRefused):
    """Redis does not let this user in, or not do that. Ends a start; a role that runs tries again."""


class VersionMissing(IndexRefused):
    """The store lists versions that the caller did not bring; load ``versions`` and try again."""

    def __init__(self, versions: frozenset[str], *, where: str) -> None:
        names = ", ".join(sorted(versions))
        super().__init__(f"{where} expects rows of {names}", mend="load those versions and write again")
        self.versions = versions


class VersionUnlisted(IndexRefused):
    """A bucket does not list (any more, or after Redis forgot: yet) the version whose rows are being rebuilt."""

    def __init__(self, version: str, bucket: int) -> None:
        super().__init__(
            f"bucket {bucket} does not list version {version}", mend="workers list live versions again by themselves"
        )
        self.version = version


class ArtefactError(AifError):
    """A model directory is damaged, of another schema, or does not match its manifest."""


class VersionError(AifError):
    """A model version is unknown, not ready, or already in another state."""


class Unexplainable(AifError):
    """An answer cannot be explained: its facts or its version are gone, or its score is not found again."""


class UpstreamError(AifError):
    """Retrieval failed, was slow, or answered nonsense."""


class Overloaded(AifError):
    """The server is at capacity; the caller should retry after a moment."""


class EmbeddedError(AifError):
    """The embedded broker, Redis or the local Kafka did not start."""


class DataFolderError(AifError):
    """The folder of ``aif up --data`` cannot be read, written or used by this release. Names the file."""


class DataFolderConflict(DataFolderError):
    """The folder was created with other options."""


class TrainingDataError(AifError):
    """A data set is unusable; the message names file, line and mend."""


class NonFiniteError(AifError):
    """A model's loss, gradients, weights, rows or scores are not finite. Of a training run the message names epoch,
    step and gradient norm."""
