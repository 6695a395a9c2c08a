"""Item side: features → t, w, σ and the item's share h of the scorer's first layer. Runs nearline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from aif_stream.model.config import Field, ModelConfig
from aif_stream.model.features import AttributeEncoder, Attributes, ItemFeatures
from aif_stream.model.signature import random_planes


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
        labels = torch.from_numpy(attributes.labels)
        if labels.shape[1]:
            x = fn.embedding_bag(labels, table, mode="sum")  # (N, n) -> (N, E)
        else:
            x = table.new_zeros(len(labels), table.shape[1])
        for tokens in attributes.sets:
            flat, starts = torch.from_numpy(tokens.flat), torch.from_numpy(tokens.offsets[:-1])
            x = x + fn.embedding_bag(flat, table, starts, mode="mean")
        if self.numbers is not None:
            x = x + self.numbers(torch.from_numpy(attributes.numbers).to(table.dtype))  # (N, m) -> (N, E)
        return x


class ItemTower(nn.Module):
    """x = LN(ids + attributes + content); t = LN(x A + MLP(x)); w = softmax(t Brᵀ / τ√D); h = [x, t] W_h."""

    planes: Tensor
    content_mean: Tensor
    content_scale: Tensor

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
        self.bridges = nn.Parameter(nn.init.orthogonal_(torch.empty(K, D)) * D**0.5)
        self.share = nn.Linear(E + D, H, bias=False)
        self.sharpness = 1.0 / (config.bridge_temperature * D)
        W = config.signature_bits
        self.register_buffer("planes", random_planes(V, W, seed) if V else torch.zeros(0, W, dtype=torch.float64))
        self.register_buffer("content_mean", torch.zeros(V, dtype=torch.float64))
        self.register_buffer("content_scale", torch.ones((), dtype=torch.float64))

    def centred(self, features: ItemFeatures) -> Tensor:
        """Content minus its mean, f64 (N, V); zero without content."""
        has_content = torch.from_numpy(features.has_content)[:, None]
        return (torch.from_numpy(features.content).double() - self.content_mean) * has_content

    def project(self, features: ItemFeatures) -> Tensor:
        """Signature projections f64 (N, W): in 64 bits, or an item's bits would depend on its batch."""
        return self.centred(features) @ self.planes

    def forward(self, features: ItemFeatures) -> ItemNumbers:
        x = fn.embedding_bag(torch.from_numpy(features.ids), self.ids.weight, mode="sum")  # (N, 2) -> (N, E)
        x = x + self.attributes(features.attributes)
        if self.content is not None:
            x = x + self.content((self.centred(features) / self.content_scale).to(x.dtype))  # (N, V) -> (N, E)
        x = self.norm(x)
        t = self.t_norm(self.skip(x) + self.down(fn.relu(self.up(x))))  # (N, E) -> (N, D)
        w = torch.softmax(t @ self.bridges.T * self.sharpness, dim=-1)  # (N, D) -> (N, K)
        h = self.share(torch.cat([x, t], dim=-1))  # (N, E + D) -> (N, H)
        return ItemNumbers(t, w, h)
