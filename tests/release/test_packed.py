import numpy as np
import pytest
import torch

from matalign.release import packed


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 3, 2, 2), (7, 11)])
def test_packing_rounds_to_the_nearest_of_few_levels(bits, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    kept, scale = packed.pack(values, bits=bits)
    assert kept.dtype == torch.uint8
    assert len(kept) == -(-values.numel() * bits // 8)
    again = packed.unpack(kept, scale, shape, bits=bits)
    rows, found = values.reshape(len(values), -1), again.reshape(len(values), -1)
    top = 2 ** (bits - 1) - 1
    step = rows.abs().amax(1, keepdim=True) / top
    assert ((found - rows).abs() <= step / 2 * 1.0001).all()
    greatest = rows.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, greatest), rows.gather(1, greatest))
    torch.testing.assert_close(found, (rows / step).round() * step)


def test_eight_bits_are_the_usual_ones():
    values = torch.tensor([[127.0, -127.0, 3.0, 0.4]])
    kept, scale = packed.pack(values, bits=8)
    assert scale.tolist() == [1.0]
    assert (kept.numpy().astype(int) - 127).tolist() == [127, -127, 3, 0]


def test_a_row_of_zeros_stays_zero():
    kept, scale = packed.pack(torch.zeros(2, 3), bits=6)
    assert packed.unpack(kept, scale, (2, 3), bits=6).tolist() == [[0.0] * 3] * 2


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="2 to 8, got 9"):
        packed.pack(torch.ones(1, 1), bits=9)
    with pytest.raises(ValueError, match="finite"):
        packed.pack(torch.tensor([[np.nan]]), bits=8)
    kept, scale = packed.pack(torch.ones(2, 3), bits=6)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) needs \(6, 2\) bytes and scales, got \(5, 2\)"):
        packed.unpack(kept, scale, (2, 4), bits=6)


WEIGHTS = {
    "towers.image.conv": torch.linspace(-1, 1, 24).view(2, 3, 2, 2),
    "towers.image.norm": torch.tensor([1e-7, 1e5]),  # beyond float16
    "heads.linear": torch.tensor([[0.1, -0.2]]),
    "count": torch.tensor(3),
}


def test_convolutions_are_packed_matrices_halved_and_vectors_kept():
    kept = packed.stored(WEIGHTS, bits=6)
    sizes = {name: (tensor.dtype, tensor.nbytes) for name, tensor in kept.items()}
    assert sizes == {
        "towers.image.conv.packed": (torch.uint8, 18),
        "towers.image.conv.scale": (torch.float32, 8),
        "towers.image.norm": (torch.float32, 8),
        "heads.linear": (torch.float16, 4),
        "count": (torch.int64, 8),
    }
    again = packed.restored({**kept, "count": kept["count"][None]}, WEIGHTS, bits=6)
    assert again["count"].shape == ()
    assert {name: w.dtype for name, w in again.items()} == {name: w.dtype for name, w in WEIGHTS.items()}
    assert torch.equal(again["towers.image.norm"], WEIGHTS["towers.image.norm"])
    torch.testing.assert_close(again["heads.linear"], WEIGHTS["heads.linear"], rtol=1e-3, atol=0)
    torch.testing.assert_close(again["towers.image.conv"], WEIGHTS["towers.image.conv"], rtol=0, atol=1 / 62)


def test_weights_that_do_not_fit_are_named():
    kept = packed.stored(WEIGHTS, bits=6)
    with pytest.raises(ValueError, match="1 weights are missing or unknown, first 'count'"):
        packed.restored({k: w for k, w in kept.items() if k != "count"}, WEIGHTS, bits=6)
    with pytest.raises(ValueError, match="1 weights are missing or unknown, first 'another'"):
        packed.restored({**kept, "another": torch.zeros(1)}, WEIGHTS, bits=6)
    with pytest.raises(ValueError, match=r"'heads.linear' has shape \(1, 2\), expected \(1, 3\)"):
        packed.restored(kept, {**WEIGHTS, "heads.linear": torch.zeros(1, 3)}, bits=6)
    with pytest.raises(ValueError, match=r"'towers.image.conv': shape \(2, 3, 3, 3\) needs"):
        packed.restored(kept, {**WEIGHTS, "towers.image.conv": torch.zeros(2, 3, 3, 3)}, bits=6)


def test_files_are_cut_where_they_grow_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD_BYTES", 1000)
    tensors = {str(i): torch.full((100,), float(i)) for i in range(6)}
    files = packed.write(tmp_path, "a", tensors)
    assert files == [f"a-0000{i}.safetensors" for i in range(3)]
    again = packed.read(tmp_path, files)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert packed.write(tmp_path, "b", {"0": tensors["0"]}) == ["b.safetensors"]
