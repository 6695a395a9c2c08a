"""Settings: the only reader of the environment. Read once, frozen, checked; a wrong value stops the start.

Order: built-in default < ``$AIF_HOME/run.toml`` (written by ``aif up``) < ``--config FILE`` < ``AIF_…``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args, get_type_hints
from urllib.parse import urlsplit, urlunsplit

from aif_stream.errors import SettingsError

PREFIX: Final = "AIF_"
MASK: Final = "********"
JoinMode = Literal["mirror", "redis"]
KernelLevel = Literal["auto", "avx512", "avx2", "portable", "numpy"]
Compute = Literal["f32", "bf16"]
AgePolicy = Literal["serve", "mark", "recompute", "drop"]


def _setting(default: Any, help: str, *, secret: bool = False, low: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "secret": secret, "low": low})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of every role. The variable of ``kafka_bootstrap`` is ``AIF_KAFKA_BOOTSTRAP``."""

    home: Path = _setting(Path("~/.aif_stream"), "where run.toml, models and caches live")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting("INFO", "log level")

    kafka_bootstrap: str = _setting("127.0.0.1:9092", "brokers, host:port[,host:port]")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting("PLAINTEXT", "protocol")
    kafka_ca_file: str = _setting("", "CA certificates (PEM) for SSL")
    kafka_cert_file: str = _setting("", "client certificate (PEM) for mutual TLS")
    kafka_key_file: str = _setting("", "client key (PEM) for mutual TLS")
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting("SCRAM-SHA-512", "SASL")
    kafka_username: str = _setting("", "SASL user")
    kafka_password: str = _setting("", "SASL password", secret=True)
    kafka_session_timeout_ms: int = _setting(10_000, "a silent group member is given up after this", low=1000)
    kafka_batch_mb: int = _setting(
        # 32 times the 1 MiB that a batch may have compressed; JSON events compress to a tenth.
        32,
        "a batch that decompresses to more is set aside unread",
        low=1,
    )
    topic_prefix: str = _setting("", "put before every topic and group name (several systems on one broker)")
    topics_dir: Path = _setting(Path(), "topic contracts; empty: those that ship with the package")
    compression: Literal["none", "lz4", "zstd"] = _setting(
        "zstd", "of produced batches; the request log has snappy, or none"
    )

    redis_url: str = _setting("redis://127.0.0.1:6379/0", "the N2O index (rediss:// for TLS)", secret=True)
    redis_cluster: bool = _setting(False, "speak Redis Cluster")
    redis_timeout_s: float = _setting(5.0, "deadline of one Redis round trip", low=0.01)
    index_buckets: int = _setting(256, "buckets of the index; fixed per deployment", low=1)
    tombstone_keep_h: float = _setting(24 * 14, "hours a removed item's order is remembered", low=0.001)
    history_long: int = _setting(10_000, "history entries kept per user", low=1)

    batch_events: int = _setting(2048, "events per nearline micro-batch at most", low=1)
    batch_wait_ms: int = _setting(20, "how long a poll waits for events when idle", low=1)
    worker_id: str = _setting("", "name in logs and marks; empty: host-pid")
    max_ahead_ms: int = _setting(300_000, "an event later than append time + this is a dead letter", low=0)
    rebuild_rate: int = _setting(0, "rows/s of a rebuild per worker; 0: as fast as live lag allows", low=0)
    rebuild_yield_lag_ms: int = _setting(200, "a rebuild waits while live events are older than this", low=1)

    serve_worker: str = _setting("", "set by aif serve --workers for each of its processes: shares AIF_SERVE_PORT")
    serve_worker_ports: str = _setting("", "set by aif serve --workers: the own ports of all its processes")
    host: str = _setting("127.0.0.1", "address that HTTP servers bind")
    serve_port: int = _setting(8080, "port of aif serve", low=0)
    retrieval_port: int = _setting(8081, "port of aif retrieval", low=0)
    metrics_port: int = _setting(8082, "port of /metrics of roles without HTTP; 0: a free one", low=0)
    metrics: bool = _setting(True, "count and time what happens; false: every aif_* series stays at zero")
    probe_every_s: float = _setting(5.0, "aif monitor updates its probe so often; 0: no probe", low=0)
    monitor_port: int = _setting(8083, "port of aif monitor", low=0)
    serve_url: str = _setting("", "where CLI verbs find aif serve; empty: host and port above")
    retrieval_urls: str = _setting("http://127.0.0.1:8081", "retrieval upstreams, comma-separated")
    retrieval_channels: str = _setting("neighbours,category,popular", "channels asked by serve")
    retrieval_k: int = _setting(10_000, "candidates wanted from all channels together", low=1)
    retrieval_budget_ms: float = _setting(80.0, "deadline of one retrieval channel", low=1)
    retrieval_latency_ms: float = _setting(0.0, "aif retrieval answers no sooner (experiments)", low=0)
    join: JoinMode = _setting("mirror", "mirror: rows in memory; redis: one batched read per request")
    mirror_memory_mb: int = _setting(
        8192, "a mirror that would pass this stops the start; those of versions kept warm must fit together", low=1
    )
    warm_versions: int = _setting(
        # The active one, the one that it replaced (rollback), the next one (activation): each within a request.
        3,
        "versions that a server holds, each with its mirror, the active one included",
        low=1,
    )
    deadline_ms: float = _setting(150.0, "deadline of a rank request that names none", low=1)
    max_deadline_ms: float = _setting(2000.0, "the longest deadline a request may name", low=1)
    max_body_bytes: int = _setting(2 * 1024 * 1024, "larger request bodies are answered 413", low=1024)
    max_k: int = _setting(1000, "largest k", low=1)
    max_candidates: int = _setting(20_000, "most candidates a request may name", low=1)
    age_limit_s: float = _setting(0.0, "rows older than this fall under age_policy; 0: no limit", low=0)
    age_policy: AgePolicy = _setting("mark", "what happens to rows beyond age_limit_s")
    recompute_max: int = _setting(256, "missing rows recomputed per request at most", low=0)
    user_cache_s: float = _setting(
        # A new behavior or profile makes a new user side at once; only rows of the history's items can be this old.
        10.0,
        "a user side is reused this long while the user's history and profile stay as they are, at most 60; 0: never",
        low=0,
    )
    overlap: bool = _setting(True, "user side beside retrieval; false: after it, as others do (comparisons)")
    kernels: KernelLevel = _setting("auto", "instructions of the compiled loops; numpy: their plain twins")
    compute: Compute = _setting("f32", "precision of the scorer's products; bf16 needs AVX512_BF16 (see /readyz)")
    executor_threads: int = _setting(2, "threads for user side and scoring, no more than cores are used", low=1)

    request_log_rate: float = _setting(
        # What was not logged cannot be replayed; a topic bound of 10 GiB per partition keeps disks safe meanwhile.
        1.0,
        "share of answers written to aif.requests; 10,000 candidates take 20-40 KB each",
        low=0,
    )
    request_log_redact: str = _setting("", "context fields left out of the log, comma-separated, at any depth; *: all")

    explain_rate: float = _setting(0.0, "share of answers whose facts are kept without being asked for", low=0)
    explain_facts_s: float = _setting(600.0, "facts of an answer are kept so long", low=1)
    explain_facts_mb: int = _setting(256, "facts of one server at most; the oldest go first", low=1)
    explain_keep_s: float = _setting(3600.0, "an explanation is kept so long after its last change", low=10)
    explain_deadline_ms: float = _setting(600_000.0, "an explanation without a deadline of its own has this one", low=1)
    explain_max: int = _setting(20, "most explanations that one rank request may start", low=0)
    explain_client_rate: float = _setting(50.0, "explanations/s one client may ask for; twice that at once", low=0.01)
    explain_near_bound: float = _setting(
        0.1, "the near cache switches itself off when its mean disagreement passes this; 0: it is not used", low=0
    )
    explain_near_check: float = _setting(0.1, "share of near hits that are computed all the same and compared", low=0)
    explain_port: int = _setting(8084, "port of /metrics and /readyz of aif explain; 0: a free one", low=0)
    explain_nice: int = _setting(19, "OS niceness of aif explain (19: it only takes what others leave)", low=0)

    gate_row_sample: int = _setting(
        # One wrong row in 200 is found with 99.3 %; reading and computing them takes about a second.
        1000,
        "items whose row the gate computes anew and compares, byte by byte",
        low=1,
    )
    gate_requests: int = _setting(100, "requests on which the gate compares a version with the active one", low=1)
    gate_candidates: int = _setting(500, "candidates per compared request at most", low=2)
    # Retrained models (another seed, half the data, other parts) agreed with 0.64 … 0.88, broken ones (shuffled or
    # untrained weights, equal scores) with -0.13 … 0.08 (docs/decisions/0013-held-versions.md).
    gate_min_rank_correlation: float = _setting(0.4, "Spearman's with the active version, mean over requests", low=-1)
    gate_min_overlap: float = _setting(0.2, "share of the best tenth that both versions name, mean", low=0)
    gate_max_score_shift: float = _setting(3.0, "median score against the active one's, in its deviations", low=0)
    gate_timeout_s: float = _setting(120.0, "a gate that takes longer has not been passed", low=1)

    models_dir: Path = _setting(Path(), "artefacts of published versions; empty: $AIF_HOME/models")

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.home.expanduser())
        if self.models_dir == Path():
            object.__setattr__(self, "models_dir", self.home / "models")
        if not self.serve_url:
            object.__setattr__(self, "serve_url", f"http://{self.host}:{self.serve_port}")


@dataclass(frozen=True, slots=True)
class Origin:
    """One line of ``aif config show``; ``value`` is masked when the setting is a secret."""

    name: str
    value: str
    origin: str
    help: str


def variable(name: str) -> str:
    """``kafka_bootstrap`` -> ``AIF_KAFKA_BOOTSTRAP``."""
    return PREFIX + name.upper()


def variables(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Those of the settings as variables, for a child process."""
    return {variable(name): str(getattr(settings, name)) for name in names}


def cpu_capability() -> str:
    """``AIF_CPU_CAPABILITY``: the most that the compiled loops may use (avx512, avx2, portable, numpy), as if the CPU
    had no more; "" for all it has. No setting of a role: it lets one machine test what another would compute."""
    return os.environ.get("AIF_CPU_CAPABILITY", "")


def handed_on(extra: Mapping[str, str]) -> dict[str, str]:
    """This process' whole environment with ``extra`` over it, for a child process: handed on, not read."""
    return {**os.environ, **extra}


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> tuple[Settings, list[Origin]]:
    """Read all sources. Raises ``SettingsError`` naming the variable (or file and key) that is wrong."""
    env = os.environ if environ is None else environ
    hints = get_type_hints(Settings)
    layers: list[tuple[str, Mapping[str, Any]]] = []
    home = Path(env.get("AIF_HOME", "~/.aif_stream")).expanduser()
    if (home / "run.toml").is_file():
        layers.append((str(home / "run.toml"), _read_toml(home / "run.toml", hints)))
    if config is not None:
        layers.append((str(config), _read_toml(config, hints)))
    layers.append(("environment", {n: env[variable(n)] for n in hints if variable(n) in env}))

    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, raw in layer.items():
            where = variable(name) if origin == "environment" else f"{name} in {origin}"
            values[name] = _parse(hints[name], raw, where)
            origins[name] = origin
    for spec in fields(Settings):
        low = spec.metadata["low"]
        if low is not None and spec.name in values and values[spec.name] < low:
            raise SettingsError(f"{variable(spec.name)}={values[spec.name]} is below {low:g}")
    settings = Settings(**values)
    return settings, [_origin(settings, spec, origins) for spec in fields(Settings)]


def _origin(settings: Settings, spec: Any, origins: Mapping[str, str]) -> Origin:
    value = str(getattr(settings, spec.name))
    if spec.metadata["secret"] and value:
        value = _mask(value)
    return Origin(spec.name, value, origins.get(spec.name, "default"), spec.metadata["help"])


def _mask(value: str) -> str:
    """A URL keeps its address and loses its password; anything else is hidden whole."""
    parts = urlsplit(value)
    if not parts.hostname:
        return MASK
    if parts.password is None:
        return value
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{MASK}@{parts.netloc.rpartition('@')[2]}"))


def _read_toml(path: Path, hints: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    for name in data:
        if name not in hints:
            raise SettingsError(f"{path}: unknown setting {name!r}", mend="aif config show lists them")
    return data


def _parse(kind: Any, raw: Any, where: str) -> Any:
    choices = get_args(kind)
    if choices:
        if raw not in choices:
            raise SettingsError(f"{where}={raw!r} is none of {', '.join(choices)}")
        return raw
    text = str(raw)
    try:
        return _PARSERS[kind](text)
    except ValueError:
        raise SettingsError(f"{where}={text!r} is no {cast(type, kind).__name__}") from None


def _bool(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


_PARSERS: Final[dict[Any, Callable[[str], Any]]] = {
    str: str,
    int: int,
    float: float,
    bool: _bool,
    Path: lambda text: Path(text).expanduser(),
}
