"""``aif experiment …``: questions that are answered by running something; JSON, figures and one HTML page."""

from __future__ import annotations

import click

from aif_stream.cli import experiment_costs, experiment_sweeps, experiment_versions


@click.group()
def experiment() -> None:
    """Questions answered by running something: results.json, figures and report.html into --out."""


for _verb in (
    experiment_sweeps.bridges,
    experiment_sweeps.signatures,
    experiment_sweeps.ladder,
    experiment_costs.crosses,
    experiment_costs.latency,
    experiment_versions.skew,
    experiment_versions.staleness,
):
    experiment.add_command(_verb)
