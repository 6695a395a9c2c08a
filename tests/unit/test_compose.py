"""docker-compose.yml and the image, as far as they can be checked without a Docker engine (docs/operations.md)."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from aif_stream.cli import VERBS, cli
from aif_stream.settings import Settings, load, variable

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
OWN = {name: service for name, service in SERVICES.items() if service["image"] == "aif-stream"}
ROLES = ("nearline", "retrieval", "serve", "explain", "monitor")

every_service = pytest.mark.parametrize("name", SERVICES)
own_service = pytest.mark.parametrize("name", OWN)


def one_shot(service: dict[str, Any]) -> bool:
    """It ends by itself: nothing restarts it after a success."""
    return service.get("restart") in ("no", "on-failure")


@every_service
def test_a_service_is_a_pinned_image_with_a_health_check_or_ends_by_itself(name: str) -> None:
    service = SERVICES[name]
    assert name in OWN or ":" in service["image"].rpartition("/")[2], "another's image has a tag"
    assert one_shot(service) != ("healthcheck" in service)
    if "healthcheck" in service:
        assert service["restart"] == "unless-stopped"
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert {"interval", "timeout", "retries"} <= set(check)


@every_service
def test_ports_are_published_to_loopback_only(name: str) -> None:
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@every_service
def test_nothing_runs_as_root(name: str) -> None:
    if name in OWN:
        user = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("USER ")]
        assert user == ["aif"]
        assert "user" not in SERVICES[name]
    else:
        assert SERVICES[name]["user"] not in ("root", "0", 0)


@every_service
def test_volumes_are_named_and_declared_and_files_of_ours_are_there_and_read_only(name: str) -> None:
    mounts = [volume.split(":") for volume in SERVICES[name].get("volumes", [])]
    ours = [mount for mount in mounts if mount[0].startswith("./")]
    assert {mount[0] for mount in mounts if mount not in ours} <= set(COMPOSE["volumes"])
    assert [mount for mount in ours if mount[2:] != ["ro"] or not (ROOT / mount[0]).is_dir()] == []


def test_what_must_outlive_a_container_has_a_volume_where_the_service_keeps_it() -> None:
    assert SERVICES["kafka"]["volumes"] == [f"kafka:{SERVICES['kafka']['environment']['KAFKA_LOG_DIRS']}"]
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]
    home = next(part for part in DOCKERFILE.split() if part.startswith("AIF_HOME=")).partition("=")[2]
    for role in ROLES:
        assert SERVICES[role]["volumes"] == [f"models:{home}/models"]
        # A new named volume takes over the owner of the image's folder, so the folder has to be there, and his.
    assert f"mkdir -p {home}/models && chown -R aif:aif {home}" in DOCKERFILE


@own_service
def test_every_variable_is_a_setting_with_a_value_that_it_takes(name: str) -> None:
    environment = OWN[name]["environment"]
    assert set(environment) <= {variable(spec.name) for spec in fields(Settings)}
    load(environ={key: str(value) for key, value in environment.items()})


@own_service
def test_every_command_is_a_verb_of_the_command_line(name: str) -> None:
    words = list(OWN[name]["command"])
    command: click.Command = cli
    context = click.Context(cli)
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found is not None, OWN[name]["command"]
        command = found
    if "--help" not in words:
        command.make_context(name, words)
    assert 'ENTRYPOINT ["aif"]' in DOCKERFILE


@pytest.mark.parametrize("role", ROLES)
def test_a_health_check_asks_the_port_that_the_role_binds(role: str) -> None:
    settings, _ = load(environ={key: str(value) for key, value in OWN[role]["environment"].items()})
    port = {
        "nearline": settings.metrics_port,
        "retrieval": settings.retrieval_port,
        "serve": settings.serve_port,
        "explain": settings.explain_port,
        "monitor": settings.monitor_port,
    }[role]
    assert f"http://127.0.0.1:{port}/" in OWN[role]["healthcheck"]["test"][-1]
    assert settings.host == "0.0.0.0", "another container has to reach it"  # noqa: S104
    assert all(published.endswith(f":{port}") for published in OWN[role].get("ports", []))


def test_addresses_name_services_and_their_ports() -> None:
    settings, _ = load(environ={key: str(value) for key, value in OWN["serve"]["environment"].items()})
    assert settings.kafka_bootstrap in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.retrieval_urls == f"http://retrieval:{settings.retrieval_port}"
    assert settings.serve_url == f"http://serve:{settings.serve_port}"


def test_roles_start_after_their_topics_and_redis_and_one_service_builds_the_image() -> None:
    for role in ROLES:
        assert OWN[role]["depends_on"] == {
            "topics": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
        }
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    built = {name for name, service in OWN.items() if "build" in service}
    assert built == {"topics"}
    assert {service["pull_policy"] for name, service in OWN.items() if name not in built} == {"never"}
    assert (ROOT / SERVICES["topics"]["build"]["dockerfile"]).is_file()


def test_redis_never_evicts_and_keeps_its_log() -> None:
    words = SERVICES["redis"]["command"]
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given["--maxmemory-policy"] == "noeviction"
    assert (given["--appendonly"], given["--appendfsync"], given["--save"]) == ("yes", "everysec", "")


def test_one_broker_asks_for_one_copy_everywhere() -> None:
    environment = SERVICES["kafka"]["environment"]
    copies = {key: value for key, value in environment.items() if "REPLICATION_FACTOR" in key or key.endswith("_ISR")}
    assert set(copies.values()) == {1}
    assert len(copies) == 5
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_image_copies_what_the_package_needs_and_the_package_has_every_room() -> None:
    copied = {word for line in DOCKERFILE.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]}
    wanted = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.lock"}
    wanted |= {"aif_stream", "topics", "deploy/kafka"}  # where package-dir in pyproject.toml points
    assert wanted <= copied
    assert [name for name in wanted if not (ROOT / name).exists()] == []
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not wanted & ignored
    rooms = {f"aif_stream.{path.parent.name}" for path in (ROOT / "aif_stream").glob("*/__init__.py")}
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed - {"aif_stream", "aif_stream.contracts", "aif_stream.kafka_pom"} == rooms
    assert set(ROLES) <= set(VERBS)
