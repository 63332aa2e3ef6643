import pytest
import torch

from matalign.pretrain import checkpoint


def test_a_resumed_optimiser_goes_on_as_if_never_stopped(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer, x):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    x, (model, optimizer) = torch.randn(4, 3), made()
    step(model, optimizer, x)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"step": 1, "best": 0.5}}
    checkpoint.save(tmp_path / "state.pt", state)
    step(model, optimizer, x)
    resumed, again = made()
    state = checkpoint.load(tmp_path / "state.pt")
    resumed.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    step(resumed, again, x)
    assert state["progress"] == {"step": 1, "best": 0.5}
    assert torch.equal(resumed.weight, model.weight)


def test_a_state_that_cannot_be_written_leaves_the_last(tmp_path):
    file = tmp_path / "state.pt"
    checkpoint.save(file, {"progress": 1})
    with pytest.raises(TypeError):
        checkpoint.save(file, None)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(file, {"progress": lambda: 0})
    assert checkpoint.load(file) == {"progress": 1}
