"""The split form: everything of the user folded into two matrices before the candidates are known.

    hidden = [w_i | tiers_i | t_i] @ first  +  h_i  +  bag(bytes of s_i, category_i)

``first`` (K+T+D, H) holds V W_b, W_t and diag(u) W_c. ``bag`` (8·256·W/64 + …, H) holds for each signature byte
and each of its 256 values the sum of that byte's rows of M W_l, then h_u + cross per category: a sum of W/8 + 1
gathered rows costs a tenth of the product σ_i @ (M W_l) and unpacks no bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from aif_stream.domain.row import Rows
from aif_stream.model.config import Kind
from aif_stream.model.net import Net
from aif_stream.model.rows import has_content, tensor, valid
from aif_stream.model.scorer import Scorer
from aif_stream.model.signature import BYTE_SIGNS, Signatures, tier_features_into
from aif_stream.model.user_side import Histories, UserNumbers


@dataclass(frozen=True, slots=True)
class UserSide:
    """One user under one version: all that scoring needs. Read-only; may be shared between threads.

    ``history_used`` of the ``history_stored`` entries had a usable row (and were among the newest).
    """

    u: Tensor  # (D)
    first: Tensor  # (K + T + D, H) of AIF, (D, H) of COLD
    bag: Tensor  # (rows, H)
    byte_offsets: NDArray[np.int32]  # (W/8): where a byte's 256 rows begin in the bag
    silent: int  # the bag's row of zeros, for items without content
    category_row: NDArray[np.int32]  # (C + 1): bag row of category - 1 … C - 1
    signatures: Signatures  # (L', W/8) of history entries with content
    history_used: int
    history_stored: int


def fold(net: Net, user: UserNumbers, history: Histories, signatures: Signatures, stored: int) -> UserSide:
    """R = 1 numbers -> ``UserSide``. ``signatures`` are those of the history's entries with content."""
    config, scorer = net.config, net.scorer
    D, H, W = config.width, config.hidden, config.signature_bits
    u, product = user.u[0], scorer.product.weight.T  # (D), (D, H)
    first = u[:, None] * product  # (D, H)
    bag = user.h  # (1, H)
    byte_offsets = np.arange(W // 8, dtype=np.int32) * 256
    silent, category_row = 0, np.zeros(len(config.categories) + 1, dtype=np.int32)
    if config.kind is Kind.AIF:
        bridge = user.readouts[0] @ scorer.bridge.weight.T  # (K, D) @ (D, H)
        first = torch.cat([bridge, scorer.tiers.weight.T, first])
        linear = (user.signature_matrix[0] @ scorer.linear.weight.T).view(W // 8, 8, H)  # (W, D) @ (D, H)
        table = torch.from_numpy(BYTE_SIGNS).float() @ linear  # (256, 8) @ (W/8, 8, H) -> (W/8, 256, H)
        shares, seen = cross_shares(scorer, history)
        silent = 32 * W
        category_row = np.full(len(config.categories) + 1, silent + 1, dtype=np.int32)
        category_row[seen + 1] = silent + 2 + np.arange(len(seen), dtype=np.int32)
        bag = torch.cat([table.reshape(-1, H), torch.zeros(1, H), user.h, user.h + shares])
    return UserSide(
        u=u / D**0.5,
        first=first.contiguous(),
        bag=bag.contiguous(),
        byte_offsets=byte_offsets,
        silent=silent,
        category_row=category_row,
        signatures=signatures,
        history_used=int(history.mask.sum()),
        history_stored=stored,
    )


def cross_shares(scorer: Scorer, history: Histories) -> tuple[Tensor, NDArray[np.int64]]:
    """SIM before the candidates: shares (C', H) of every category in the history, and those categories (C')."""
    categories = history.category[0]  # (L)
    seen = torch.unique(categories[history.mask[0] & (categories >= 0)])
    member = (seen[:, None] == categories) & history.mask[0]  # (C', L)
    shares: Tensor = scorer.cross(member.to(history.t.dtype)[None], history)[0]
    return shares, seen.numpy()


def score_rows(net: Net, user: UserSide, rows: Rows, edges: Signatures) -> NDArray[np.float32]:
    """Logits f32 (B); -inf where a row is not valid. No state, no autograd: safe from several threads."""
    config, scorer = net.config, net.scorer
    K, T, D = config.bridges, config.tiers, config.width
    if config.kind is Kind.TWOTOWER:
        logits = tensor(rows["t"]).float() @ user.u
    elif config.kind is Kind.COLD:
        t = tensor(rows["t"]).float()
        hidden = tensor(rows["h"]).float() + user.bag
        logits = scorer.head(torch.addmm(hidden, t, user.first)) + t @ user.u
    else:
        content = has_content(rows)
        x = torch.empty(len(rows), K + T + D)
        x[:, :K] = tensor(rows["w"])
        x[:, K + T :] = tensor(rows["t"])
        tier_features_into(x.numpy()[:, K : K + T], rows["sig"], content, user.signatures, edges)
        hidden = fn.embedding_bag(_bag_rows(user, rows, content), user.bag, mode="sum")  # (B, W/8 + 1) -> (B, H)
        hidden += tensor(rows["h"])
        hidden.addmm_(x, user.first)  # (B, K + T + D) @ (K + T + D, H)
        logits = scorer.head(hidden).add_(x[:, K + T :] @ user.u)
    scores: NDArray[np.float32] = logits.numpy()
    scores[~valid(rows)] = -np.inf
    return scores


def _bag_rows(user: UserSide, rows: Rows, content: NDArray[np.bool_]) -> Tensor:
    """Which rows of the bag belong to each item: i32 (B, W/8 + 1)."""
    at = np.empty((len(rows), len(user.byte_offsets) + 1), dtype=np.int32)
    np.add(rows["sig"], user.byte_offsets, out=at[:, :-1])
    at[~content, :-1] = user.silent
    at[:, -1] = user.category_row[rows["category"] + 1]
    return torch.from_numpy(at)
