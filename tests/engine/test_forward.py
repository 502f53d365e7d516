"""How many inputs go through the network at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nimbus_sd.arrays import VIEWS, apply_view, invert_view, plan_tiles
from nimbus_sd.engine.device import index_limit
from nimbus_sd.engine.forward import Network
from nimbus_sd.models import UNet, UNetConfig, build
from nimbus_sd.models.loading import LoadedModel
from nimbus_sd.testing import DirectionalNet, directional_model, tiny_unet_model

CPU = torch.device("cpu")


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.n = max(self.n, tensor.numel())
        return out


def largest(net, n, shape):
    """Elements of the largest activation, found by running over tensors without memory."""
    hollow = net.to("meta")
    with torch.inference_mode(), Largest() as seen:
        hollow(torch.empty((n, 2, *shape), device="meta"))
    return seen.n


def network(model, **options):
    return Network(model, CPU, "float32", **options)


def on_gpu(found):
    """Its arithmetic as for a GPU; nothing is computed."""
    found.device = torch.device("cuda")
    return found


@pytest.mark.parametrize("batch_size", [None, 54])
@pytest.mark.parametrize("side", [512 + 192, 1024 + 192])
def test_no_activation_of_the_published_network_reaches_the_32_bit_limit(side, batch_size):
    net = UNet(UNetConfig()).eval()
    # 54 markers at tile 512 would
    assert 54 * (512 + 192) ** 2 * 128 > 2**31
    model = LoadedModel(tiny_unet_model().net, tiny_unet_model().card)
    found = on_gpu(network(model, batch_size=batch_size, memory=1 << 50))
    found._indexable = index_limit(net)
    n = found.per_pass((side, side))
    assert 1 < n < 54
    assert largest(net, n, (side, side)) < 2**31
    assert largest(net, n + 1, (side, side)) >= 2**31


@pytest.mark.parametrize(
    "architecture",
    [
        {"kind": "unet", "width": 16},
        {"kind": "resnet", "layers": 50},
        {"kind": "efficientnet", "size": "s"},
        {"kind": "efficientnet", "size": "l"},
    ],
    ids=lambda a: "-".join(map(str, a.values())),
)
def test_other_networks_stay_below_it(architecture):
    net = build(architecture).eval()
    n = index_limit(net) // 640**2
    assert largest(net, n, (640, 640)) < 2**31


def test_inputs_per_pass_by_hand():
    model = tiny_unet_model(width=2, depth=3)
    per_pixel = 8 * 2 * 4
    assert network(model, memory=64 * 64 * per_pixel * 5 + 1_000_000).per_pass((64, 64)) == 8
    assert network(model, memory=64 * 64 * per_pixel * 5).per_pass((64, 64)) == 5
    assert network(model, memory=1 << 20).per_pass((512, 512)) == 1
    # more than a Mpx per pass is no faster on a CPU, unless it is asked for
    assert network(model, memory=1 << 50).per_pass((512, 512)) == 4
    assert network(model, memory=1 << 50, batch_size=9).per_pass((512, 512)) == 9
    assert on_gpu(network(model, memory=1 << 30)).per_pass((512, 512)) == (1 << 30) // per_pixel // 512**2
    # the planner takes no tile that a GPU could not index, whatever the memory
    assert on_gpu(network(model, memory=1 << 50)).pixels == (2**31 - 1) // 4
    assert network(model, memory=1 << 50).pixels == (1 << 50) // per_pixel
    # one input always goes
    assert on_gpu(network(model, memory=1 << 50)).per_pass((1 << 16, 1 << 16)) == 1


def test_views_of_one_shape_share_passes():
    shapes = []

    class Seen(DirectionalNet):
        def forward(self, x):
            shapes.append(tuple(x.shape))
            return super().forward(x)

    tile = plan_tiles((32, 48), factor=1.0, tile=64, halo=16)[0]
    batch = torch.rand(3, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    found = network(directional_model(Seen())).probabilities(batch, tuple(VIEWS), tile)
    assert shapes == [(12, 2, 32, 48), (12, 2, 48, 32)]
    for v, view in enumerate(VIEWS):
        one = DirectionalNet()(apply_view(batch, view))
        torch.testing.assert_close(found[v], invert_view(one, view)[:, 0].sigmoid())
