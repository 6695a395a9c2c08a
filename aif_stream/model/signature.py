"""Signatures: sign bits of a fixed random projection, and what is linear in them.

sim(i, j) = popcount(XNOR(s_i, s_j)) / W estimates 1 − angle(i, j) / π (Charikar 2002). With σ = ±1 bits,
sim − ½ = σ_i·σ_j / 2W, so that Σ_j (sim(i, j) − ½) v_j = σ_i · (Σ_j σ_j v_jᵀ) / 2W: a W×D matrix of the user.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Signatures = NDArray[np.uint8]

# σ of each byte value, bit 0 first, f32 (256, 8), and of each half byte's, f32 (16, 4).
_BYTE_SIGNS: Final = (
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32) * 2 - 1
)
NIBBLE_SIGNS: Final = _BYTE_SIGNS[:16, :4].copy()


def random_planes(content_width: int, bits: int, seed: int) -> torch.Tensor:
    """Fixed projection f64 (V, W), orthonormal in blocks of V columns: spread planes estimate better."""
    random = np.random.default_rng([seed, 0x516])
    blocks = [
        np.linalg.qr(random.standard_normal((content_width, content_width)))[0]
        for _ in range(-(-bits // max(content_width, 1)))
    ]
    return torch.from_numpy(np.concatenate(blocks, axis=1)[:, :bits].copy())


def pack_signs(projected: torch.Tensor, has_content: NDArray[np.bool_]) -> Signatures:
    """Projected content (N, W) -> signatures u8 (N, W/8), bit 0 first; zeros without content."""
    bits = (projected > 0).numpy() & has_content[:, None]
    return np.packbits(bits, axis=1, bitorder="little")


def signs(signatures: Signatures, has_content: NDArray[np.bool_]) -> NDArray[np.float32]:
    """σ, f32 (…, W): ±1, and 0 without content."""
    # Written once: at L = 10,000 and W = 256 each further pass over them is 10 MB.
    sigma = np.take(_BYTE_SIGNS, signatures, axis=0).reshape(*signatures.shape[:-1], -1)
    sigma[~has_content] = 0.0
    return sigma


def nibbles(signatures: Signatures) -> Signatures:
    """Half bytes (…, W/4) of signatures (…, W/8), the low one of each byte first: bits in their order."""
    halves = np.stack([signatures & 15, signatures >> 4], axis=-1)
    return halves.reshape(*signatures.shape[:-1], 2 * signatures.shape[-1])
