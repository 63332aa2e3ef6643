"""A GPU where there is none: tensors that say they are on it, while the processor holds and computes them.

Like PyTorch's fake tensors, but with values, so that code may branch on them. It refuses what a GPU would refuse:
tensors of two devices in one operation, and what has no deterministic algorithm there. It does not cast: what bfloat16
does, `torch.autocast` shows on the processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
MOVES = {"_to_copy", "copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # the indices may be on the processor
BESIDE = {"_to_copy", "scalar_tensor"}  # asked for where PyTorch believes a pretended tensor to be
REFUSED = {  # of what torch.use_deterministic_algorithms lists
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "grid_sampler_2d_backward",
    "histc",
    "median",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_linear1d_backward",
}


class Pretended(torch.Tensor):
    """A tensor `held` by the processor that says it is on the GPU."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        # meta: what lies below Python asks no driver about it
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, device="meta")

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Tensors that are made on the GPU from none that is there pass through here."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


class Generator(torch.Generator):
    """Of any device: one of the processor."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


def call(func, args, kwargs):
    """Compute on the processor what is asked of either device."""
    name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, Pretended)]
    here = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Pretended) and x.dim()]
    asked = kwargs.get("device")
    wanted = ("cuda", "meta") if name in BESIDE else ("cuda",)
    if not there and (asked is None or torch.device(asked).type not in wanted):
        return func(*args, **kwargs)
    on_gpu = asked is None or torch.device(asked).type != "cpu"
    if name in INDEXED:
        here = [x for x in here if not any(x is index for index in args[1])]
    if there and here and name not in MOVES:
        raise RuntimeError(f"{name}: tensors on the GPU and on the processor, {[tuple(x.shape) for x in here]}")
    if there and (name in REFUSED or (name == "cumsum" and there[0].is_floating_point())):
        raise RuntimeError(f"{name} has no deterministic algorithm on a GPU")
    known = {id(x.held): x for x in there}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    out = func(*args, **(kwargs if asked is None else {**kwargs, "device": torch.device("cpu")}))
    if not on_gpu or (name == "copy_" and id(args[0]) not in known):
        return out

    def pretended(x):
        return known[id(x)] if id(x) in known else Pretended(x)

    return tree_map(lambda x: pretended(x) if isinstance(x, torch.Tensor) else x, out)


def indexed(device):
    """With the number of the GPU, for which PyTorch would else ask the driver."""
    return GPU if isinstance(device, str | torch.device) and torch.device(device).type == "cuda" else device


def moved(make):
    """`torch.tensor`, which makes its tensor where no mode sees it, by way of the processor."""

    def made(*args, device=None, **kwargs):
        return make(*args, **kwargs).to(device)

    return made


@contextmanager
def gpu() -> Iterator[torch.device]:
    """As long as it lasts there is one GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None, raising=False
        )
        to = torch.Tensor.to
        patch.setattr(
            torch.Tensor,
            "to",
            lambda x, *args, **kwargs: to(x, *map(indexed, args), **{k: indexed(v) for k, v in kwargs.items()}),
        )
        patch.setattr(torch, "tensor", moved(torch.tensor))
        patch.setattr(torch, "as_tensor", moved(torch.as_tensor))
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with Mode():
            yield GPU
