"""Weights and vectors of a released model on disk: int8 rows, half precision, files of a bounded size.

A row r (an output channel of a convolution, or a vector) is kept as the whole numbers round(r / s) with one scale
s = max|r| / 127: symmetric quantisation per channel (Jacob et al., CVPR 2018).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors.torch import save_file
from torch import Tensor

from matalign import cache

SHARD_BYTES = 15_000_000  # no file is larger
IMAGE = "towers.image."  # the convolutions of this tower are kept as int8
SCALE = ".scale"  # ends the name of the scales of a quantised tensor
TOP = 127


def quantise(values: Float[Tensor, "rows *n"]) -> tuple[Int8[Tensor, "rows *n"], Float[Tensor, " rows"]]:
    """Rows as int8, and the float32 scale of each. Raises ValueError: a value is not finite."""
    if not values.isfinite().all():
        raise ValueError("values must be finite to be quantised")
    scale = values.float().flatten(1).abs().amax(1) / TOP
    whole = values.float() / scale.clamp(min=1e-30).view(-1, *[1] * (values.ndim - 1))
    return whole.round().clamp(-TOP, TOP).to(torch.int8), scale


def dequantise(whole: Int8[Tensor, "rows *n"], scale: Float[Tensor, " rows"]) -> Float[Tensor, "rows *n"]:
    """What `quantise` was given, rounded; float32."""
    return whole.float() * scale.view(-1, *[1] * (whole.ndim - 1))


def stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a released model keeps them.

    Convolutions of the image tower as int8, other matrices as float16; vectors (norms, statistics) as they are.
    """
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        if name.startswith(IMAGE) and value.ndim == 4:
            out[name], out[name + SCALE] = quantise(value)
        else:
            out[name] = value.half() if value.ndim > 1 and value.is_floating_point() else value
    return out


def restored(kept: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `stored` kept, in the types of a model's state; ValueError: a weight is missing, unknown, or misshapen."""
    if wrong := {name for name in kept if not name.endswith(SCALE)} ^ set(like):
        raise ValueError(f"{len(wrong)} weights are missing or unknown, first {min(wrong)!r}")
    out = {}
    for name, goal in like.items():
        value = kept[name] if kept[name].numel() != 1 else kept[name].reshape(goal.shape)  # numpy has no 0-d arrays
        if value.shape != goal.shape:
            raise ValueError(f"weight {name!r} has shape {tuple(value.shape)}, expected {tuple(goal.shape)}")
        scale = kept.get(name + SCALE)
        out[name] = value.to(goal.dtype) if scale is None else dequantise(value, scale)
    return out


def write(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Write `<name>.safetensors`, or `<name>-00000.safetensors`, … of at most `SHARD_BYTES` each; the files' names."""
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
    """Read what `write` wrote. Raises ValueError: a file is no safetensors."""
    return {key: tensor for file in files for key, tensor in cache.tensors(folder / file).items()}
