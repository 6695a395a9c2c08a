"""Item side: features → t, w, σ and the item's share h of the scorer's first layer. Runs nearline."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from aif_stream.model.attributes import AttributeEncoder, Attributes
from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.features import ItemFeatures
from aif_stream.model.signature import Signatures, random_planes

_CODE_CELLS: Final = 1 << 22  # 16 MB of products at a time


class ItemNumbers(NamedTuple):
    """What a row carries, before rounding: t (N, D), w (N, K), h (N, H)."""

    t: Tensor
    w: Tensor
    h: Tensor


class AttributeEmbedding(nn.Module):
    """Σ over fields of an embedding (labels), a mean of embeddings (sets) and a vector (numbers): -> (N, E)."""

    def __init__(self, fields: tuple[Field, ...], reserved: int, E: int) -> None:
        super().__init__()
        encoder = AttributeEncoder(fields, reserved)
        self.table = nn.Embedding(max(encoder.tokens, 1), E)
        self.numbers = nn.Linear(encoder.number_fields, E, bias=False) if encoder.number_fields else None
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, attributes: Attributes) -> Tensor:
        table = self.table.weight
        labels = torch.from_numpy(attributes.labels).to(table.device)
        if labels.shape[1]:
            x = fn.embedding_bag(labels, table, mode="sum")  # (N, n) -> (N, E)
        else:
            x = table.new_zeros(len(labels), table.shape[1])
        for tokens in attributes.sets:
            flat, starts = (torch.from_numpy(a).to(table.device) for a in (tokens.flat, tokens.offsets[:-1]))
            x = x + fn.embedding_bag(flat, table, starts, mode="mean")
        if self.numbers is not None:
            x = x + self.numbers(torch.from_numpy(attributes.numbers).to(table))  # (N, m) -> (N, E)
        return x


class ItemTower(nn.Module):
    """x = LN(ids + attributes + content); t = LN(x A + MLP(x)); w = softmax(t Brᵀ / τ√D); h = [x, t] W_h."""

    planes: Tensor
    content_mean: Tensor
    content_scale: Tensor
    codewords: Tensor  # u8 (M, W/8)

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        D, E, K, H, V = config.width, config.embedding, config.bridges, config.hidden, config.content_width
        self.ids = nn.Embedding(config.id_buckets, E)
        nn.init.normal_(self.ids.weight, std=0.01)  # small: an id never trained must not speak loudly
        self.attributes = AttributeEmbedding(config.item_fields, 1 + len(config.categories), E)
        self.content = nn.Linear(V, E, bias=False) if V else None
        self.norm = nn.LayerNorm(E)
        self.up, self.down, self.skip = nn.Linear(E, E), nn.Linear(E, D), nn.Linear(E, D, bias=False)
        self.t_norm = nn.LayerNorm(D)
        # Orthogonal rows of length √D start the bridges apart; ‖t‖ = √D after its norm.
        start = nn.init.orthogonal_(torch.empty(K, D)) * D**0.5
        self.bridges = nn.Parameter(start if config.bridge_start == "orthogonal" else torch.randn(K, D))
        self.bridge_norm = config.bridge_norm
        self.share = nn.Linear(E + D, H, bias=False)
        self.sharpness = 1.0 / (config.bridge_temperature * D)
        W = config.signature_bits
        self.register_buffer("planes", random_planes(V, W, seed) if V else torch.zeros(0, W, dtype=torch.float64))
        self.register_buffer("content_mean", torch.zeros(V, dtype=torch.float64))
        self.register_buffer("content_scale", torch.ones((), dtype=torch.float64))
        if config.codes:
            self.register_buffer("codewords", torch.zeros(config.codes, W // 8, dtype=torch.uint8))

    @property
    def bridge_rows(self) -> Tensor:
        """The bridges as they are used, (K, D)."""
        return fn.layer_norm(self.bridges, self.bridges.shape[1:]) if self.bridge_norm else self.bridges

    def centred(self, features: ItemFeatures) -> Tensor:
        """Content minus its mean, f64 (N, V); zero without content."""
        device = self.content_mean.device
        has_content = torch.from_numpy(features.has_content)[:, None].to(device)
        return (torch.from_numpy(features.content).to(device).double() - self.content_mean) * has_content

    def units(self, features: ItemFeatures) -> NDArray[np.float32]:
        """Centred content of length 1, f32 (N, V); zero without content. What signatures estimate the angles of."""
        unit: NDArray[np.float32] = fn.normalize(self.centred(features), dim=1).float().numpy()
        return unit

    def project(self, features: ItemFeatures) -> Tensor:
        """Signature projections f64 (N, W): in 64 bits, or an item's bits would depend on its batch."""
        return self.centred(features) @ self.planes

    def codes(self, signatures: Signatures) -> NDArray[np.int64]:
        """The nearest codeword of each signature (N, W/8), the first of several as near; i64 (N)."""
        words = self.codewords.numpy()
        # Equal bits as a product of ±1: whole numbers far below 2²⁴, so exact in any batch and order.
        sigma, coded = (np.unpackbits(s, axis=1).astype(np.float32) * 2 - 1 for s in (signatures, words))
        step = max(1, _CODE_CELLS // max(len(words), 1))
        parts = [(sigma[at : at + step] @ coded.T).argmax(axis=1) for at in range(0, len(sigma), step)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def content_of(self, features: ItemFeatures) -> Tensor | None:
        """Standardised content as the tower reads it, (N, V); None where it reads none."""
        if self.content is None:
            return None
        return (self.centred(features) / self.content_scale).to(self.content.weight.dtype)

    def forward(self, features: ItemFeatures) -> ItemNumbers:
        return self.numbers(features.ids, features.attributes, self.content_of(features))

    def numbers(
        self, ids: NDArray[np.int64], attributes: Attributes, content: Tensor | None, *, bridges: bool = True
    ) -> ItemNumbers:
        """Of N items: rows of the id table i64 (N, 2), attributes, ``content_of``; w is (N, 0) without ``bridges``."""
        rows = torch.from_numpy(ids).to(self.ids.weight.device)
        x = fn.embedding_bag(rows, self.ids.weight, mode="sum")  # (N, 2) -> (N, E)
        x = x + self.attributes(attributes)
        if self.content is not None and content is not None:
            x = x + self.content(content)  # (N, V) -> (N, E)
        x = self.norm(x)
        t = self.t_norm(self.skip(x) + self.down(fn.relu(self.up(x))))  # (N, E) -> (N, D)
        h = self.share(torch.cat([x, t], dim=-1))  # (N, E + D) -> (N, H)
        if not bridges:
            return ItemNumbers(t, t[:, :0], h)
        return ItemNumbers(t, torch.softmax(t @ self.bridge_rows.T * self.sharpness, dim=-1), h)  # w: (N, D) -> (N, K)
