"""The task that `descend race --example` writes."""

from __future__ import annotations

EXAMPLE = '''\
"""A task to race optimizers on: descend race mytask.py

A race needs `model` and `train`. The rest has defaults: delete what you do not need.
"""

import torch
from torch import nn

steps = 150  # of a training
batch = 32  # examples in a step
higher_is_better = True  # the metric below is one to raise
target = 0.95  # the metric to reach


def model():
    """Make the model; every training starts with a new one."""
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


def spirals(count, seed):
    """Two spirals of points, and which spiral each point is on."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (count,), generator=generator)
    turn = 3 * torch.rand(count, generator=generator)
    angle = 2 * turn + torch.pi * label
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], 1)
    return points + 0.1 * torch.randn(count, 2, generator=generator), label


def train():
    """What to learn from: tensors, a data set, a DataLoader, or anything that yields batches."""
    return spirals(1000, seed=0)


def validation():
    """What to be judged by. Without this function, a fifth of `train` is held out."""
    return spirals(500, seed=1)


def loss(model, batch):
    """A scalar to go down. This one is the default for integer targets."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def accuracy(model, batch):
    """The share of points on the right spiral."""
    inputs, targets = batch
    return (model(inputs).argmax(-1) == targets).float().mean()


metric = accuracy  # without it, the loss is the metric
'''
