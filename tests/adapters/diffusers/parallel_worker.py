"""One of two processes that share the tokens of a model; run as a module with the rank and a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

import sparsemoc as moc
from sparsemoc.diffusers import enable
from tests.adapters.diffusers.models import CASES

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=(1, 2))  # each process takes one head
OTHER = replace(SPEC, top_k=1)


def gradients(model: Any) -> dict[str, Any]:
    out = model(**CASES["wan"].inputs(), return_dict=False)[0]
    out.square().mean().backward()  # diffusers gives each process the gradient of its own part of the output
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **grads}


def one_of_two(rank: int, folder: str) -> None:
    """Run as one of two processes, and keep the output and the gradients of both together."""
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh=mesh)
    model = CASES["wan"].build()
    # What model.enable_parallelism does, which needs an accelerator.
    model._parallel_config = config
    for module in model.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = config
    apply_context_parallel(model, config.context_parallel_config, model._cp_plan)
    dense = gradients(model)["out"]
    model.zero_grad()
    with enable(model, SPEC, per_layer={0: OTHER}):
        found = gradients(model)
    for name, grad in found.items():
        if name != "out":
            distributed.all_reduce(grad)
    restored = model(**CASES["wan"].inputs(), return_dict=False)[0].detach()
    if not rank:
        torch.save({**found, "dense": dense, "restored": restored}, f"{folder}/found")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), sys.argv[2])
