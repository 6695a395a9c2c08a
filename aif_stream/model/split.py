"""The split form: everything of the user folded into two matrices before the candidates are known.

    hidden = [w_i | tiers_i | t_i] @ first  +  h_i  +  bag(half bytes of s_i, category_i, key2_i, code_i)

``first`` (K+T+D, H) holds V W_b, W_t and diag(u) W_c. ``bag`` (rows, H) holds for each half byte of the signature and
each of its 16 values the sum of those four rows of M W_l, then h_u + cross per category, the cross per second key, and,
with coded tiers, tiers W_t of every codeword: a sum of W/4 + 1 (to 3) gathered rows costs a fraction of the product
σ_i @ (M W_l), unpacks no bits, and with codes no popcount waits for the candidates. Whole bytes would halve the
rows of a sum, but their tables are eight times as large (2 MB at W = 256): slower to make, to keep and, out of the
second cache, to read. Parts that are off leave nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from aif_stream.domain.row import Rows
from aif_stream.kernels.score import PackedUser, padded
from aif_stream.model.attention import Remembered
from aif_stream.model.config import Kind, Part
from aif_stream.model.net import Net
from aif_stream.model.rows import has_content, tensor, valid
from aif_stream.model.scorer import Cross
from aif_stream.model.signature import NIBBLE_SIGNS, Signatures, nibbles, signs
from aif_stream.model.tiers import TierReader
from aif_stream.model.user_side import Histories, UserNumbers

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Seen:
    """History entries with content (L'), as tiers read them: signatures, kinds, unit vectors where they are cosines."""

    signatures: Signatures
    kinds: NDArray[np.uint8]
    units: F32 | None = None


@dataclass(frozen=True, slots=True)
class UserSide:
    """One user under one version: all that scoring needs. Read-only; may be shared between threads.

    ``history_used`` of the ``history_stored`` entries had a usable row (and were among the newest).
    """

    u: Tensor  # (D)
    first: Tensor  # (K + T + D, H) with all parts, (D, H) of COLD
    bag: Tensor  # (rows, padded H), zeros beyond H
    silent: int  # the bag's row of zeros
    category_row: I32  # (C + 1): bag row of category - 1 … C - 1
    key2_row: I32  # the same of the second key; empty without one
    code_row: int  # bag row of code 0; -1 without codes
    nibble_row: int  # bag row of value 0 of the first half byte, 16 rows each (W/4); -1 without LSH
    signatures: Signatures  # (L', W/8) of history entries with content
    kinds: NDArray[np.uint8]  # (L') of the same
    units: F32 | None  # (L', V) of the same, of models that read cosines
    remembered: Remembered | None  # of offline models
    history_used: int
    history_stored: int
    readouts: Tensor | None = None  # (K, D) where the model multiplies them with t
    packed: PackedUser | None = None  # the same for the compiled scorer, where the version has one

    @property
    def nbytes(self) -> int:
        """Memory of all arrays; the bag once where ``packed`` reads it in place."""
        tensors = sum(tensor.nbytes for tensor in (self.u, self.first, self.bag))
        tensors += 0 if self.readouts is None else self.readouts.nbytes
        rows = (self.category_row, self.key2_row, self.signatures, self.kinds)
        arrays = sum(array.nbytes for array in rows) + (0 if self.units is None else self.units.nbytes)
        own = 0 if self.packed is None else self.packed.nbytes
        if self.packed is not None and self.packed.shares(self.bag.data_ptr()):
            own -= self.bag.nbytes
        return int(tensors + arrays + own)


class _Bag:
    """Rows of the bag, one after another."""

    def __init__(self, H: int) -> None:
        self.spare = padded(H) - H  # as the compiled scorer reads it: one memory for both
        self.parts: list[Tensor] = [torch.zeros(1, padded(H))]
        self.size = 1

    def add(self, rows: Tensor) -> int:
        """Append (n, H); returns where they begin."""
        self.parts.append(fn.pad(rows, (0, self.spare)) if self.spare else rows)
        self.size += len(rows)
        return self.size - len(rows)


def fold(net: Net, reader: TierReader, user: UserNumbers, history: Histories, seen: Seen, stored: int) -> UserSide:
    """R = 1 numbers -> ``UserSide``."""
    config, scorer = net.config, net.scorer
    D, H, W = config.width, config.hidden, config.signature_bits
    u, bag = user.u[0], _Bag(H)
    first = [u[:, None] * scorer.product.weight.T]  # (D, H)
    nibble_row = code_row = -1
    if config.has(Part.TIERS) and not config.codes:
        first.insert(0, scorer.tiers.weight.T)
    if user.readouts is not None:
        first.insert(0, user.readouts[0] @ scorer.bridge.weight.T)  # (K, D) @ (D, H)
    if user.signature_matrix is not None:
        linear = (user.signature_matrix[0] @ scorer.linear.weight.T).view(W // 4, 4, H)  # (W, D) @ (D, H)
        table = torch.from_numpy(NIBBLE_SIGNS) @ linear  # (16, 4) @ (W/4, 4, H) -> (W/4, 16, H)
        nibble_row = bag.add(table.reshape(-1, H))
    categories = len(config.categories)
    category_row = np.full(categories + 1, bag.add(user.h), dtype=np.int32)
    key2_row = np.zeros(0, dtype=np.int32)
    if config.has(Part.SIM):
        _cross_rows(bag, category_row, scorer.cross, history.category, history, user.h)
        if scorer.cross2 is not None:
            known = next(field for field in config.item_fields if field.name == config.second_key).vocabulary
            key2_row = np.zeros(len(known) + 1, dtype=np.int32)  # bag row 0: zeros
            _cross_rows(bag, key2_row, scorer.cross2, history.key2, history, torch.zeros(1, H))
    if config.codes:
        words = net.item_tower.codewords.numpy()
        tiers = reader.read(words, np.ones(len(words), dtype=np.bool_), seen.signatures, seen.kinds)  # (M, T)
        code_row = bag.add(torch.from_numpy(tiers) @ scorer.tiers.weight.T)  # (M, H)
    return UserSide(
        u=u / D**0.5,
        first=torch.cat(first).contiguous(),
        bag=torch.cat(bag.parts).contiguous(),
        silent=0,
        category_row=category_row,
        key2_row=key2_row,
        code_row=code_row,
        nibble_row=nibble_row,
        signatures=seen.signatures,
        kinds=seen.kinds,
        units=seen.units,
        remembered=None if scorer.attention is None else scorer.attention.remember(history),
        history_used=int(history.mask.sum()),
        history_stored=stored,
        readouts=None if scorer.bridge_product is None or user.readouts is None else user.readouts[0],
    )


def _cross_rows(bag: _Bag, row_of: I32, cross: Cross, own: Tensor, history: Histories, base: Tensor) -> None:
    """SIM before the candidates: a bag row for each key in the history, ``base`` (1, H) plus its share. Keys that the
    history lacks keep their row: an empty group's share is zero."""
    keys, shares = cross.of_all_keys(own, history)  # (C'), (1, C', H)
    begin = bag.add(base + shares[0])
    row_of[keys.numpy() + 1] = begin + np.arange(len(keys), dtype=np.int32)


def score_rows(net: Net, reader: TierReader, user: UserSide, rows: Rows, units: F32 | None = None) -> F32:
    """Logits f32 (B); -inf where a row is not valid. No state, no autograd: safe from several threads.

    ``units``: unit content vectors (B, V) of the candidates, which models of cosines read and rows do not carry.
    """
    config, scorer = net.config, net.scorer
    t = tensor(rows["t"]).float()
    if config.kind is Kind.TWOTOWER:
        logits = t @ user.u
    else:
        content = has_content(rows)
        width = user.first.shape[0]
        x = t
        if width > config.width:
            x = torch.empty(len(rows), width)
            x[:, width - config.width :] = t
            at = 0
            if config.has(Part.BEA):
                x[:, : config.bridges] = tensor(rows["w"])
                at = config.bridges
            if at < width - config.width:
                _tiers_into(x.numpy()[:, at : width - config.width], reader, user, rows, content, units)
        hidden = fn.embedding_bag(
            _bag_rows(user, rows, content), user.bag, mode="sum"
        )  # (B, W/4 + 1…) -> (B, padded H)
        hidden = hidden[:, : config.hidden]
        hidden += tensor(rows["h"])
        hidden.addmm_(x, user.first)  # (B, K + T + D) @ (K + T + D, H)
        if scorer.bridge_product is not None and user.readouts is not None:
            read = x[:, : config.bridges] @ user.readouts  # (B, K) @ (K, D)
            hidden += scorer.bridge_product(read.mul_(t))
        if scorer.attention is not None and user.remembered is not None:
            sigma = torch.from_numpy(signs(rows["sig"], content))
            hidden += scorer.attention(t[None], sigma[None], user.remembered)[0]
        logits = scorer.head(hidden).add_(t @ user.u)
    scores: F32 = logits.numpy()
    scores[~valid(rows)] = -np.inf
    return scores


def _tiers_into(
    out: F32, reader: TierReader, user: UserSide, rows: Rows, content: NDArray[np.bool_], units: F32 | None
) -> None:
    if user.units is not None and units is not None:
        out[:] = reader.read_cosines(units, content, user.units, user.kinds)
    else:
        reader.read_into(out, rows["sig"], content, user.signatures, user.kinds)


def _bag_rows(user: UserSide, rows: Rows, content: NDArray[np.bool_]) -> Tensor:
    """Which rows of the bag belong to each item: i32 (B, W/4 + 1 …)."""
    n = rows["sig"].shape[1] * 2 if user.nibble_row >= 0 else 0
    at = np.empty((len(rows), n + 1 + (len(user.key2_row) > 0) + (user.code_row >= 0)), dtype=np.int32)
    if n:
        np.add(nibbles(rows["sig"]), user.nibble_row + 16 * np.arange(n, dtype=np.int32), out=at[:, :n])
        at[~content, :n] = user.silent
    at[:, n] = user.category_row[rows["category"] + 1]
    if len(user.key2_row):
        at[:, n + 1] = user.key2_row[rows["key2"] + 1]
    if user.code_row >= 0:
        at[:, -1] = user.code_row + rows["code"].astype(np.int32)
        at[~content, -1] = user.silent
    return torch.from_numpy(at)
