"""Random numbers by name: those of an image do not depend on the batch, the order, or on which images are left."""

import hashlib

import torch
from torch import Tensor


def keys(seed: int, tag: str, ids: Tensor) -> Tensor:
    """Names of random streams, int64 (B,): one per (seed, tag, image id)."""
    digest = hashlib.sha256(f"{seed}/{tag}".encode()).digest()
    return _mix(ids + int.from_bytes(digest[:7], "big"))


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0,1) for each key: float32 (B,count), the same on every device."""
    # A counter goes through splitmix64's finaliser (Steele et al. 2014); 24 bits of each word become a float.
    counter = torch.arange(count, device=keys.device) * -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
    return _shift(_mix(keys[:, None] + counter), 40).float() * 2.0**-24


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap, as they must."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)
