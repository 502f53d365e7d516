"""HoVer-Net's encoder: the published layers, found by the published names."""

import pytest
import torch
import torch.nn.functional as F

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models.hovernet import HoVerNetConfig, HoVerNetEncoder, SameConv, encoder_weights
from nimbus_sd.models.loading import load_strict

WIDTH, UNITS = 4, (2, 1, 2, 1)


def published_state(seed=0, *, slashes=True):
    """A state dict in the layout of the public checkpoints, as their code names it, with random values."""
    g = torch.Generator().manual_seed(seed)
    bar = "/" if slashes else "_"
    state = {}

    def conv(name, n_out, n_in, k):
        state[f"{name}.weight"] = torch.randn(n_out, n_in, k, k, generator=g) / (n_in * k * k) ** 0.5

    def norm(name, n):
        state[f"{name}.weight"] = torch.rand(n, generator=g) + 0.5
        state[f"{name}.bias"] = torch.randn(n, generator=g)
        state[f"{name}.running_mean"] = torch.randn(n, generator=g)
        state[f"{name}.running_var"] = torch.rand(n, generator=g) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv0./" if slashes else "conv0.conv", WIDTH, 3, 7)
    norm("conv0.bn", WIDTH)
    n_in = WIDTH
    for i, units in enumerate(UNITS):
        width = WIDTH * 2**i
        conv(f"d{i}.shortcut", 4 * width, n_in, 1)
        for k in range(units):
            at = f"d{i}.units.{k}"
            if k:
                norm(f"{at}.preact{bar}bn", n_in)
            conv(f"{at}.conv1", width, n_in, 1)
            norm(f"{at}.conv1{bar}bn", width)
            conv(f"{at}.conv2", width, width, 3)
            norm(f"{at}.conv2{bar}bn", width)
            conv(f"{at}.conv3", 4 * width, width, 1)
            n_in = 4 * width
        norm(f"d{i}.blk_bna.bn", n_in)
    conv("conv_bot", 16 * WIDTH, n_in, 1)
    conv("decoder.np.u3.conva", 4, 16 * WIDTH, 5)
    state["upsample2x.unpool_mat"] = torch.ones(2, 2)
    return state


def slow_encoder(state, x):
    """The published forward pass, one operation after the other, from the names with slashes."""

    def conv(x, name, stride=1):
        w = state[f"{name}.weight"]
        k = w.shape[-1]
        if k > 1:
            n = x.shape[2]  # TensorFlow's "same", for square inputs
            total = max(k - stride if n % stride == 0 else k - n % stride, 0)
            a, b = total // 2, total - total // 2
            x = F.pad(x, (a, b, a, b))
        return F.conv2d(x, w, stride=stride)

    def norm(x, name):
        return F.batch_norm(
            x, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
        ).relu()

    x = norm(conv(x, "conv0./"), "conv0.bn")
    for i, units in enumerate(UNITS):
        stride = 1 if i == 0 else 2
        shortcut = conv(x, f"d{i}.shortcut", stride)
        for k in range(units):
            at = f"d{i}.units.{k}"
            y = norm(x, f"{at}.preact/bn") if k else x
            y = norm(conv(y, f"{at}.conv1"), f"{at}.conv1/bn")
            y = norm(conv(y, f"{at}.conv2", stride if k == 0 else 1), f"{at}.conv2/bn")
            x = shortcut = conv(y, f"{at}.conv3") + shortcut
        x = norm(x, f"d{i}.blk_bna.bn")
    return conv(x, "conv_bot").mean((2, 3))


@pytest.mark.parametrize("side", [32, 33, 45])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_weights_give_the_published_features(side, prefix):
    state = published_state()
    net = HoVerNetEncoder(HoVerNetConfig(WIDTH, UNITS)).eval()
    load_strict(net, encoder_weights({f"{prefix}{k}": v for k, v in state.items()}, where="it"), where="it")
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), slow_encoder(state, x), rtol=1e-4, atol=1e-5)


def test_names_with_underscores_are_the_same_weights():
    slashes, others = published_state(), published_state(slashes=False)
    a, b = encoder_weights(slashes, where="it"), encoder_weights(others, where="it")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_published_size():
    net = HoVerNetEncoder()
    n = sum(p.numel() for p in net.parameters())
    assert 25e6 < n < 27e6  # a ResNet-50 of 23.5 million, and the last convolution's 2.1
    assert net.config.n_features == 1024


def test_sides_that_do_not_divide_pad_each_axis_by_itself():
    net = HoVerNetEncoder(HoVerNetConfig(WIDTH, UNITS)).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 37, 50)).shape == (1, 64)


def test_bad_input():
    with pytest.raises(WeightsError, match="no HoVer-Net encoder"):
        encoder_weights({"embeddings.weight": torch.zeros(1)}, where="a file")
    for wrong in ({"width": 0}, {"units": (1, 2)}, {"units": (1, 2, 3, 0)}):
        with pytest.raises(InputError, match="HoVer-Net of"):
            HoVerNetConfig(**wrong)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strided_shortcuts_have_the_gradients_of_a_strided_convolution(layout):
    """In torch 2.13 that one corrupts memory where channels are few and stored last."""
    conv = SameConv(2, 8, 1, 2).to(memory_format=layout)
    for _ in range(20):
        x = torch.rand(4, 2, 56, 56).contiguous(memory_format=layout).requires_grad_()
        conv(x).square().sum().backward()
    w = conv.weight.detach().clone().contiguous().requires_grad_()
    plain = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    torch.einsum("oc,bcyx->boyx", w[:, :, 0, 0], plain[..., ::2, ::2]).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)
    conv.zero_grad()
    conv(x).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, w.grad, rtol=1e-4, atol=1e-3)
