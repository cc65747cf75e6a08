"""The Python in the README runs, block after block, and does what is said of it."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fastrnn

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PACKAGES = ("torch", "jax")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the blocks define, but for those whose package is not installed."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for block in BLOCKS:
            needed = [name for name in PACKAGES if re.search(rf"^import {name}\b", block, re.MULTILINE)]
            if all(map(importlib.util.find_spec, needed)):
                exec(compile(block, str(README), "exec"), names)
        assert Path("flow.png").stat().st_size > 1000
    return names


def test_blocks(names):
    assert len(BLOCKS) == 5
    assert names["flow"].verdict == "vanishing"
    assert names["logits"].shape == (100, 32, 10)


def test_inside_pytorch(names):
    torch = pytest.importorskip("torch")
    ours, theirs = names["FastLSTM"](8, 16, seed=0), torch.nn.LSTM(8, 16)
    theirs.load_state_dict({name: p.clone() for name, p in ours.weights.items()})
    dropping = names["FastLSTM"](8, 16, 2, dropout=0.5, seed=0)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3, 8)).astype(np.float32))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    assert not torch.equal(dropping(x), dropping(x))
    dropping.eval()
    assert torch.equal(dropping(x), dropping(x))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
    for _ in range(3):
        losses = ours(inputs[0]).square().sum(), theirs(inputs[1])[0].square().sum()
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    np.testing.assert_allclose(losses[0].item(), losses[1].item(), rtol=1e-5)
    np.testing.assert_allclose(inputs[0].grad, inputs[1].grad, atol=1e-5)
    for name, p in ours.layer.params.items():
        np.testing.assert_allclose(p, theirs.state_dict()[name], atol=1e-6)


def test_inside_jax(names):
    jax = pytest.importorskip("jax")
    gru, rng = names["gru"], np.random.default_rng(0)
    params = {name: rng.uniform(-0.1, 0.1, p.shape).astype(np.float32) for name, p in gru.params.items()}
    x = rng.standard_normal((5, 3, 64)).astype(np.float32)

    def loss(params, x):
        return (names["recurrent"](params, x) ** 2).sum()

    value, (by_params, by_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    layer = fastrnn.GRU(64, 128)
    layer.load_state_dict(params)
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, 2 * y)
    np.testing.assert_allclose(value, (y**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_x, grads.x, atol=1e-6)
    for name, gradient in grads.params.items():
        np.testing.assert_allclose(by_params[name], gradient, atol=1e-5)
