import numpy as np
import pytest
import torch

from matalign.release import weights


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 3, 2, 2), (7, 11)])
def test_rows_are_rounded_to_the_nearest_of_255_levels(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole, scale = weights.quantise(values)
    assert whole.dtype == torch.int8
    assert whole.shape == values.shape
    rows, again = values.flatten(1), weights.dequantise(whole, scale).flatten(1)
    step = rows.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(again, (rows / step).round() * step)
    assert ((again - rows).abs() <= step / 2 * 1.0001).all()
    greatest = rows.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(again.gather(1, greatest), rows.gather(1, greatest))


def test_by_hand():
    whole, scale = weights.quantise(torch.tensor([[127.0, -127.0, 3.0, 0.4], [0.0, 0.0, 0.0, 0.0]]))
    assert scale.tolist() == [1.0, 0.0]
    assert whole.tolist() == [[127, -127, 3, 0], [0, 0, 0, 0]]
    assert weights.dequantise(whole, scale)[1].tolist() == [0.0] * 4


def test_what_was_rounded_to_fewer_levels_before_can_be_kept_exactly():
    whole = torch.tensor([[31, -31, 7]], dtype=torch.int8)
    scale = torch.tensor([0.013])
    assert torch.equal(weights.dequantise(whole, scale), whole * scale[:, None])


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        weights.quantise(torch.tensor([[np.nan]]))


WEIGHTS = {
    "towers.image.conv": torch.linspace(-1, 1, 24).view(2, 3, 2, 2),
    "towers.image.norm": torch.tensor([1e-7, 1e5]),  # beyond float16
    "heads.linear": torch.tensor([[0.1, -0.2]]),
    "count": torch.tensor(3),
}


def test_convolutions_are_int8_matrices_halved_and_vectors_kept():
    kept = weights.stored(WEIGHTS)
    sizes = {name: (tensor.dtype, tensor.nbytes) for name, tensor in kept.items()}
    assert sizes == {
        "towers.image.conv": (torch.int8, 24),
        "towers.image.conv.scale": (torch.float32, 8),
        "towers.image.norm": (torch.float32, 8),
        "heads.linear": (torch.float16, 4),
        "count": (torch.int64, 8),
    }
    again = weights.restored({**kept, "count": kept["count"][None]}, WEIGHTS)
    assert again["count"].shape == ()
    assert {name: w.dtype for name, w in again.items()} == {name: w.dtype for name, w in WEIGHTS.items()}
    assert torch.equal(again["towers.image.norm"], WEIGHTS["towers.image.norm"])
    torch.testing.assert_close(again["heads.linear"], WEIGHTS["heads.linear"], rtol=1e-3, atol=0)
    torch.testing.assert_close(again["towers.image.conv"], WEIGHTS["towers.image.conv"], rtol=0, atol=1 / 254)


def test_weights_that_do_not_fit_are_named():
    kept = weights.stored(WEIGHTS)
    with pytest.raises(ValueError, match="1 weights are missing or unknown, first 'count'"):
        weights.restored({k: w for k, w in kept.items() if k != "count"}, WEIGHTS)
    with pytest.raises(ValueError, match="1 weights are missing or unknown, first 'another'"):
        weights.restored({**kept, "another": torch.zeros(1)}, WEIGHTS)
    with pytest.raises(ValueError, match=r"'heads.linear' has shape \(1, 2\), expected \(1, 3\)"):
        weights.restored(kept, {**WEIGHTS, "heads.linear": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"'towers.image.conv' has shape \(2, 3, 2, 2\), expected \(2, 3, 3, 3\)"):
        weights.restored(kept, {**WEIGHTS, "towers.image.conv": torch.zeros(2, 3, 3, 3)})


def test_files_are_cut_where_they_grow_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 1000)
    tensors = {str(i): torch.full((100,), float(i)) for i in range(6)}
    files = weights.write(tmp_path, "a", tensors)
    assert files == [f"a-0000{i}.safetensors" for i in range(3)]
    again = weights.read(tmp_path, files)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert weights.write(tmp_path, "b", {"0": tensors["0"]}) == ["b.safetensors"]
