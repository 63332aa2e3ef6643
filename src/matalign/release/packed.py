"""Weights and vectors in few bits: whole numbers with one scale a row, and files of a released model.

A row r (an output channel of a convolution, or a vector) is kept in b bits as round(r / s), s = max|r| / (2^(b−1) − 1):
the greatest stays exact and zero stays zero. The usual 8-bit storage is b = 8.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from matalign.pretrain.align import SHARD_BYTES

IMAGE = "towers.image."  # the convolutions of this tower are kept in few bits
PACKED, SCALE = ".packed", ".scale"  # what their two parts are called


def pack(values: Float[Tensor, "rows *n"], *, bits: int) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, " rows"]]:
    """Rows in few bits.

    Args:
        values: at least one row.
        bits: of a value, 2 to 8.

    Returns:
        Their bits one after the other, the least of a value first; and the float32 scale of each row.

    Raises:
        ValueError: another number of bits, or a value that is not finite.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    if not values.isfinite().all():
        raise ValueError("values must be finite to be packed")
    top = 2 ** (bits - 1) - 1
    rows = values.reshape(len(values), -1).float()
    scale = rows.abs().amax(1) / top
    whole = (rows / scale.clamp(min=1e-30)[:, None]).round().clamp(-top, top) + top  # 0 … 2 top
    digits = whole.to(torch.uint8).numpy().ravel()[:, None] >> np.arange(bits, dtype=np.uint8) & 1
    return torch.from_numpy(np.packbits(digits.ravel(), bitorder="little")), scale


def unpack(
    packed: UInt8[Tensor, " bytes"], scale: Float[Tensor, " rows"], shape: tuple[int, ...], *, bits: int
) -> Float[Tensor, "rows *n"]:
    """What `pack` was given, rounded.

    Raises:
        ValueError: the shape needs another number of bytes or rows.
    """
    count = int(np.prod(shape))
    expected = (-(-count * bits // 8), shape[0])
    if (len(packed), len(scale)) != expected:
        raise ValueError(f"shape {tuple(shape)} needs {expected} bytes and scales, got {(len(packed), len(scale))}")
    digits = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    whole = np.zeros(count, np.int16)
    for place in range(bits):
        whole += digits[:, place].astype(np.int16) << place
    top = 2 ** (bits - 1) - 1
    return (torch.from_numpy(whole - top).view(shape[0], -1) * scale.float()[:, None]).view(shape)


def stored(weights: Mapping[str, Tensor], *, bits: int) -> dict[str, Tensor]:
    """Weights as a released model keeps them.

    Convolutions of the image tower in so many bits, other matrices as float16; vectors (norms, statistics) as they are.
    """
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        if name.startswith(IMAGE) and value.ndim == 4:
            out[name + PACKED], out[name + SCALE] = pack(value, bits=bits)
        else:
            out[name] = value.half() if value.ndim > 1 and value.is_floating_point() else value
    return out


def restored(kept: Mapping[str, Tensor], like: Mapping[str, Tensor], *, bits: int) -> dict[str, Tensor]:
    """The weights that `stored` kept, float32.

    Args:
        kept: its result.
        like: the state of the model that they are for: names and shapes.
        bits: as given to `stored`.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    names = {name.removesuffix(PACKED) for name in kept if not name.endswith(SCALE)}
    if wrong := names ^ set(like):
        raise ValueError(f"{len(wrong)} weights are missing or unknown, first {min(wrong)!r}")
    out = {}
    for name, goal in like.items():
        if name in kept:
            out[name] = kept[name].to(goal.dtype)
            if goal.ndim == 0 and out[name].numel() == 1:  # numpy hands numbers on as arrays of one
                out[name] = out[name].reshape(())
        else:
            try:
                out[name] = unpack(kept[name + PACKED], kept[name + SCALE], tuple(goal.shape), bits=bits)
            except (KeyError, ValueError) as error:
                raise ValueError(f"weight {name!r}: {error}") from None
        if out[name].shape != goal.shape:
            raise ValueError(f"weight {name!r} has shape {tuple(out[name].shape)}, expected {tuple(goal.shape)}")
    return out


def write(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Write `<name>.safetensors`, or `<name>-00000.safetensors`, … of at most 15 MB each; the files' names."""
    shards: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][key] = tensor
    files = [f"{name}.safetensors"] if len(shards) == 1 else [f"{name}-{i:05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file)
    return files


def read(folder: Path, files: list[str]) -> dict[str, Tensor]:
    """Read what `write` wrote."""
    return {key: tensor for file in files for key, tensor in load_file(folder / file).items()}
