"""A version's scorer as the compiled kernel reads it (kernels/score.py), where the version and this build allow it."""

from __future__ import annotations

import logging

import numpy as np

from aif_stream.kernels.native import Level, default_level
from aif_stream.kernels.score import MAX_GROUPS, Group, Head, PackedUser, ScoreKernel, Shape
from aif_stream.model.config import Kind, ModelConfig, Part
from aif_stream.model.net import Net
from aif_stream.model.rows import at_places
from aif_stream.model.split import UserSide
from aif_stream.model.tiers import TierReader
from aif_stream.telemetry import kv

log = logging.getLogger(__name__)


def why_not(config: ModelConfig) -> str:
    """Why a version is scored by the plain twin; "" when the kernel can."""
    if config.kind is Kind.TWOTOWER or config.offline:
        return f"kind {config.kind.value}"
    if len(config.tier_groups) > MAX_GROUPS:
        return f"{len(config.tier_groups)} tier groups"
    if config.has(Part.BEA) and config.bridge_product:
        return "bridge_product"
    return ""


def kernel_of(name: str, net: Net, reader: TierReader) -> ScoreKernel | None:
    """The kernel with the version's weights; None, with one log line, where the twin has to do."""
    config, scorer = net.config, net.scorer
    reason = why_not(config) or ("" if default_level() is not Level.NUMPY else "no compiled kernels")
    if reason:
        log.info(kv("scorer.on_twin", version=name, reason=reason))
        return None
    second = next((field for field in config.item_fields if field.name == config.second_key), None)
    own_tiers = config.has(Part.TIERS) and not config.codes
    shape = Shape(
        layout=config.layout,
        K=config.bridges if config.has(Part.BEA) else 0,
        groups=reader.groups if own_tiers else 0,
        tiers=config.tiers,
        edges=reader.edges,
        categories=len(config.categories),
        keys2=0 if second is None else len(second.vocabulary),
        codes=config.codes,
    )
    norm, up, down = scorer.norm, scorer.up, scorer.down
    head = Head(
        norm=norm.weight.numpy(),
        bias=norm.bias.numpy(),
        eps=norm.eps,
        up=up.weight.numpy().T,
        up_bias=up.bias.numpy(),
        down=down.weight.numpy()[0],
        down_bias=float(down.bias[0]),
    )
    return ScoreKernel(shape, head)


def packed(kernel: ScoreKernel, config: ModelConfig, reader: TierReader, user: UserSide) -> PackedUser:
    """The user side for the kernel. Memory is shared with it where widths allow."""
    groups: list[Group] = []
    if config.has(Part.TIERS) and not config.codes:
        groups = [
            Group(at_places(user.signatures, mine), reader.gains(len(mine)))
            for mine in map(np.flatnonzero, reader.members(user.kinds))
        ]
    return kernel.user(
        u=user.u.numpy(),
        first=user.first.numpy(),
        bag=user.bag.numpy(),
        category_row=user.category_row,
        key2_row=user.key2_row,
        code_row=user.code_row,
        nibble_row=user.nibble_row,
        groups=groups,
    )


def overlap(scores: np.ndarray, exact: np.ndarray, k: int = 100) -> float:
    """Share of the k best by ``exact`` that are among the k best by ``scores``."""
    best, found = (set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (exact, scores))
    return len(best & found) / max(1, len(best))
