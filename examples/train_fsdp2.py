"""Train the byte-level GPT under FSDP2 with any optimizer of the catalogue, on any number of processes.

::

    torchrun --nproc-per-node 2 examples/train_fsdp2.py --opt muon --folder runs/fsdp2

It saves as it goes, and goes on from what was saved, on as many processes as there are this time: kill it, and start it
with another ``--nproc-per-node``. The batch is of the same size and the same examples on any number of processes, so the
loss is, too.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import descend
from descend.lab.racing import warmup_cosine
from descend.lab.tasks import GPT, tasks

warnings.filterwarnings("ignore", category=FutureWarning)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opt", default="adamw", help="a name that `descend list` prints")
    parser.add_argument("--lr", type=float, default=None, help="default: what the catalogue suggests, its upper end")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--options", type=json.loads, default={}, help="more options, as JSON: '{\"fused\": true}'")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help="examples of a step, over all processes together")
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/fsdp2"))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train, save and go on."""
    given = arguments()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = "cuda" if cuda else "cpu"
    if given.batch_size % world:
        raise SystemExit(f"--batch-size {given.batch_size} does not divide into {world} processes")
    task = tasks()["gpt"]
    data = task.load().to(device)

    torch.manual_seed(0)
    model = GPT(given.dim, given.depth).to(device)
    mesh = init_device_mesh(device, (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    suggested = descend.get_optimizer_info(given.opt).suggested_lr
    lr = given.lr if given.lr is not None else max(suggested) if isinstance(suggested, tuple) else suggested
    optimizer = descend.create_optimizer_v2(
        model, opt=given.opt, lr=lr, weight_decay=given.weight_decay, **given.options
    )
    bases = [group["lr"] for group in optimizer.param_groups]

    begin = load(model, optimizer, given.folder)
    if rank == 0:
        print(f"{given.opt} at lr {lr:g} on {world} processes, from step {begin} to {given.steps}", flush=True)
    order = data.order(0, given.steps, given.batch_size)
    for step in range(begin, given.steps):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * warmup_cosine(step, given.steps, 0.1)
        mine = order[step].chunk(world)[rank]
        loss = task.loss(model, (data.inputs[mine], data.targets[mine]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % given.save_every == 0 or step + 1 == given.steps:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            save(model, optimizer, given.folder, step + 1)
            if rank == 0:
                print(f"step {step + 1:5d}  loss {mean.item() / world:.6f}", flush=True)
    final, _ = task.judge(model, data)  # on every process, since each layer's weights come from all
    if rank == 0:
        print(f"validation loss {final:.6f}", flush=True)
    dist.destroy_process_group()


def save(model: GPT, optimizer: torch.optim.Optimizer, folder: Path, step: int) -> None:
    """Write a checkpoint, and only then name it as the latest, so that a kill leaves a whole one."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder / f"step-{step}"))
    if dist.get_rank() == 0:
        draft = folder / "latest.tmp"
        draft.write_text(str(step))
        draft.replace(folder / "latest")
    dist.barrier()


def load(model: GPT, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the latest checkpoint, if there is one; returns the steps that it has behind it."""
    latest = folder / "latest"
    if not latest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        return 0
    step = int(latest.read_text())
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=str(folder / f"step-{step}"))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    return step


if __name__ == "__main__":
    main()
