"""The command line: one file per verb. Parse → settings → role or call → exit code.

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 a check fell short · 130 interrupted.
"""

from __future__ import annotations

import importlib
import traceback
from typing import Final

import click

from aif_stream import __version__
from aif_stream.cli.ending import leave
from aif_stream.errors import AifError

# verb -> module of this package that defines it under the verb's name. Imported when it is called or listed,
# so that a typo or `--version` does not pay for torch.
VERBS: Final = {
    "up": "up",
    "publish": "publish",
    "rank": "rank",
    "lag": "lag",
    "topics": "topics",
    "model": "model",
    "dlq": "dlq",
    "doctor": "doctor",
    "train": "train",
    "evaluate": "evaluate",
    "experiment": "experiment",
    "bench": "bench",
    "requests": "requests",
    "replay": "replay",
    "nearline": "nearline",
    "serve": "serve",
    "retrieval": "retrieval",
    "explain": "explain",
    "monitor": "monitor",
    "config": "config",
}


class Verbs(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"aif_stream.cli.{VERBS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - a verb's file defines its verb
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="aif")
def cli() -> None:
    """Nearline pre-ranking on Kafka and Redis."""


def main() -> None:
    """Entry point of ``aif`` and ``python -m aif_stream``."""
    leave(_exit_code())


def _exit_code() -> int:
    try:
        code = cli.main(standalone_mode=False, prog_name="aif")
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AifError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except Exception:  # noqa: BLE001 - the process' edge: what Python itself would print, and the code that it exits with
        traceback.print_exc()
        return 1
    return code if isinstance(code, int) else 0
