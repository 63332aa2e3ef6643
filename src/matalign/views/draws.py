"""Keyed random numbers: what is random in a view depends on its key alone, on every rank and every device."""

import hashlib

import numpy as np


def view_seed(seed: int, epoch: int, mp_id: str, view: int) -> int:
    """The 63-bit key of all random draws of one view of one material, the same on every rank and at every position."""
    text = f"{seed}/{epoch}/{mp_id}/{view}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def bits(keys: np.ndarray, n: int) -> np.ndarray:
    """(B, n) uint64, keyed random integers: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    step = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = np.asarray(keys).astype(np.uint64)[:, None] + step
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(keys: np.ndarray, n: int) -> np.ndarray:
    """Keyed uniform numbers in [0, 1), (B, n) float64, from `bits`."""
    return (bits(keys, n) >> np.uint64(11)) * 2.0**-53
