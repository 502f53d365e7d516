"""Run by test_contrastive in a process of its own: loss and gradient of one part of a batch."""

import sys

import torch
from torch import distributed as dist

from nimbus_sd.engine.embedding.contrastive import gather_all, nt_xent


def main():
    rank, world, meeting, data, out = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(world))
    views, weight = torch.load(data, weights_only=True)
    weight.requires_grad_()
    loss = nt_xent(views.chunk(int(world))[int(rank)] @ weight, temperature=0.3, gather=gather_all)
    loss.backward()
    torch.save((loss.detach(), weight.grad), f"{out}{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
