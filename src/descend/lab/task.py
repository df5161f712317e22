"""What a race learns: a model, examples, a loss and a metric, with a default for all that has one."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from descend.lab import own

JUDGED_AT_ONCE = 256


class Examples(Protocol):
    """Examples to train on and examples to be judged by."""

    @property
    def note(self) -> str:
        """What they are, in a sentence."""

    def batches(self, seed: int, steps: int, batch: int) -> Iterator[Any]:
        """The batch of each step: which, depends on `seed` alone."""

    def validation(self) -> Iterator[Any]:
        """Batches of all examples to be judged by."""

    def to(self, device: str) -> Examples:
        """The same on another device."""

    def fingerprint(self) -> str:
        """A hash that differs where the data differ."""

    @property
    def count(self) -> int | None:
        """How many examples there are to train on. None: a stream."""


def order(count: int, seed: int, steps: int, batch: int) -> Tensor:
    """The examples of each step, `[steps, batch]`: whole passes in an order that only `seed` decides."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch // count)
    found = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return found[: steps * batch].view(steps, batch)


@dataclass(frozen=True)
class Data:
    """Examples that are tensors in memory; a batch is `(inputs, targets)`."""

    inputs: Tensor
    targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    note: str = ""

    @property
    def count(self) -> int:
        """How many examples there are to train on."""
        return len(self.inputs)

    def order(self, seed: int, steps: int, batch: int) -> Tensor:
        """The examples of each step, `[steps, batch]`."""
        return order(self.count, seed, steps, batch)

    def batches(self, seed: int, steps: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch of each step."""
        for chosen in self.order(seed, steps, batch).to(self.inputs.device):
            yield self.inputs[chosen], self.targets[chosen]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the validation examples."""
        yield from zip(*(torch.split(x, JUDGED_AT_ONCE) for x in (self.val_inputs, self.val_targets)), strict=True)

    def to(self, device: str) -> Data:
        """The same data on another device."""
        tensors = (self.inputs, self.targets, self.val_inputs, self.val_targets)
        inputs, targets, val_inputs, val_targets = (tensor.to(device) for tensor in tensors)
        return Data(inputs, targets, val_inputs, val_targets, self.note)

    def fingerprint(self) -> str:
        """A hash of every example, so that two reports can be known to speak of the same data."""
        return _hash((self.inputs, self.targets, self.val_inputs, self.val_targets))


class Loaded:
    """Examples from data sets or data loaders; a batch is whatever they collate."""

    def __init__(self, train: Any, validation: Any, note: str = "", device: str = "cpu") -> None:
        self.train, self.val, self.note, self.device = _loader(train), _loader(validation), note, device

    @property
    def count(self) -> int | None:
        """How many examples there are to train on. None: a stream."""
        if isinstance(self.train, DataLoader) and not isinstance(self.train.dataset, IterableDataset):
            return len(self.train.dataset)  # type: ignore[arg-type]
        return None

    def batches(self, seed: int, steps: int, batch: int) -> Iterator[Any]:
        """The batch of each step; a stream is read from its start, after torch's generator was seeded."""
        if self.count is not None:
            fetch = self.train.collate_fn or default_collate
            for chosen in order(self.count, seed, steps, batch).tolist():
                yield moved(fetch([self.train.dataset[i] for i in chosen]), self.device)
        else:
            yield from (moved(found, self.device) for found in _streamed(self.train, seed, steps))

    def validation(self) -> Iterator[Any]:
        """Batches of the validation examples."""
        return (moved(batch, self.device) for batch in self.val)

    def to(self, device: str) -> Loaded:
        """The same examples, moved to another device batch by batch."""
        return Loaded(self.train, self.val, self.note, device)

    def fingerprint(self) -> str:
        """A hash of the first batch to be judged by, and of how many examples there are."""
        return _hash(_tensors(next(iter(self.val), ())), str(self.count))


def _streamed(source: Any, seed: int, steps: int) -> Iterator[Any]:
    """Batches of a stream that draws from a generator of its own: what the training draws does not change them."""
    state = torch.Generator().manual_seed(seed).get_state()
    stream: Iterator[Any] | None = None
    for _ in range(steps):
        with torch.random.fork_rng():
            torch.set_rng_state(state)
            found = None if stream is None else next(stream, None)
            if found is None:
                stream = iter(source)
                found = next(stream, None)
            if found is None:
                raise ValueError("the stream of batches is empty")
            state = torch.get_rng_state()
        yield found


def _loader(source: Any) -> Any:
    """A loader of a data set; what yields batches already, as it is."""
    if isinstance(source, (tuple, list)) and source and all(isinstance(part, Tensor) for part in source):
        source = TensorDataset(*source)
    if isinstance(source, Iterator):
        raise ValueError(
            "the examples are an iterator, which can be read once only; give a list of batches, a data set, a "
            "DataLoader, or an object whose __iter__ starts again"
        )
    if isinstance(source, DataLoader) or not hasattr(source, "__getitem__") or isinstance(source, list):
        return source
    return DataLoader(source, batch_size=JUDGED_AT_ONCE)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for part in batch:
            yield from _tensors(part)


def _hash(tensors: Any, salt: str = "") -> str:
    digest = hashlib.sha256(salt.encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def moved(batch: Any, device: str) -> Any:
    """A batch on another device, whatever tensors it is made of."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(part, device) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(moved(part, device) for part in batch)
    return batch


def plain_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss unless told otherwise, in float32 whatever the model's dtype.

    The model's own for a batch that is a mapping (as the models of transformers compute it); else, of
    `(inputs, targets)`, mean cross-entropy over every prediction if the targets are integers, mean squared error if not.
    """
    if isinstance(batch, Mapping):
        loss: Tensor = model(**batch).loss
        return loss
    inputs, targets = batch
    found = model(inputs).float()
    if targets.is_floating_point():
        return F.mse_loss(found.view_as(targets) if found.numel() == targets.numel() else found, targets)
    return F.cross_entropy(found.flatten(0, -2), targets.flatten().long())


def accuracy(model: nn.Module, batch: Any) -> Tensor:
    """The share of right predictions."""
    inputs, targets = batch
    return (model(inputs).argmax(-1) == targets).float().mean()


@dataclass(frozen=True)
class Task:
    """One thing to learn: its model, its examples, how it is judged, and how long it takes by default.

    Attributes:
        name: a word for the folder and the screens.
        model: makes the model; torch's generator is seeded before.
        load: reads the examples.
        title: what it is, in a few words. "": the name.
        loss: the loss of `(model, batch)`.
        metric: what is judged, of `(model, batch)`: a number, averaged over the validation examples. None: the loss.
        metric_name: how screens call the metric; "accuracy" is shown in percent.
        higher_is_better: whether the metric is one to raise.
        target: the metric to reach. None: none.
        steps: length of a training.
        batch: examples in a step. None: the loader's own.
        threads: threads of torch.
    """

    name: str
    model: Callable[[], nn.Module]
    load: Callable[[], Examples]
    title: str = ""
    loss: Callable[[nn.Module, Any], Tensor] = plain_loss
    metric: Callable[[nn.Module, Any], Any] | None = None
    metric_name: str = "loss"
    higher_is_better: bool = False
    target: float | None = None
    steps: int = 200
    batch: int = 32
    threads: int = 1

    @property
    def percent(self) -> bool:
        """Whether the metric is shown in percent."""
        return self.metric_name == "accuracy"

    def reached(self, metric: float, target: float | None) -> bool:
        """Whether `metric` is as good as `target`."""
        if target is None:
            return False
        return metric >= target if self.higher_is_better else metric <= target

    def check_target(self, target: float | None) -> None:
        """Raise ValueError for a target that no model reaches, or every one."""
        if self.percent and target is not None and not 0 < target <= 1:
            raise ValueError(
                f"target is {target:g}, but the accuracy to reach lies between 0 and 1, such as {self.target or 0.9}"
            )

    @torch.no_grad()
    def judge(self, model: nn.Module, data: Examples) -> tuple[float, float]:
        """Loss and metric on the validation examples.

        Raises:
            ValueError: if there are no validation examples, or the metric is no number.
        """
        model.eval()
        loss, metric, count = 0.0, 0.0, 0
        for batch in data.validation():
            size = next((len(part) for part in _tensors(batch) if part.dim()), 1)
            found = number(self.loss(model, batch), f"the loss of task {self.name!r}")
            loss += size * found
            if self.metric is not None:
                metric += size * number(self.metric(model, batch), f"the metric of task {self.name!r}")
            count += size
        model.train()
        if not count:
            raise ValueError(f"task {self.name!r} has no validation examples to be judged by")
        return loss / count, (metric if self.metric is not None else loss) / count


def number(value: Any, what: str) -> float:
    """The number that a value is.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        size = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(f"{what} is a {type(value).__name__}{size}, expected a number")
    return float(value)


# -------------------------------------------------------------------------------------------------- the user's own

PARTS = ("model", "train")
OPTIONAL = (
    "validation", "loss", "metric", "metric_name", "higher_is_better", "target", "steps", "batch", "threads", "title"
)  # fmt: skip


def make(name: str, given: Mapping[str, Any]) -> Task:
    """A task from its parts: `model` and `train` must be there, the rest has defaults.

    Args:
        name: how it is called in messages, screens and folders.
        given: parts by name: `model` makes an nn.Module; `train` and `validation` are data sets, data loaders, tuples
            of tensors, or functions that make one (without `validation`, a fifth of `train` is held out); the others
            are the attributes of `Task`.

    Raises:
        ValueError: for a part that is missing or is of the wrong kind; the message names it.
    """
    for part in given:
        if part not in (*PARTS, *OPTIONAL):
            near = difflib.get_close_matches(part, (*PARTS, *OPTIONAL), 1)
            hint = f"did you mean {near[0]}?" if near else f"the parts are {', '.join((*PARTS, *OPTIONAL))}"
            raise ValueError(f"task {name!r} has a part {part!r}, which there is not; {hint}")
    for part in PARTS:
        if given.get(part) is None:
            raise ValueError(f"task {name!r} has no {part}; it needs {' and '.join(PARTS)}")
    model, train, validation = given["model"], given["train"], given.get("validation")
    if isinstance(model, nn.Module) or not callable(model):
        raise ValueError(
            f"the model of task {name!r} is a {type(model).__name__}, expected a function or class that makes one: "
            "each training starts with a new model"
        )
    for part in ("loss", "metric"):
        if given.get(part) is not None and not callable(given[part]):
            raise ValueError(f"the {part} of task {name!r} is {given[part]!r}, expected a function of (model, batch)")
    for part in ("steps", "batch", "threads"):
        value = given.get(part)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{part} of task {name!r} is {value!r}, expected a whole number >= 1")
    options = {key: given[key] for key in OPTIONAL if key != "validation" and given.get(key) is not None}
    if "metric" in options:
        options.setdefault("metric_name", getattr(options["metric"], "__name__", "metric"))

    def load() -> Examples:
        return examples(name, _made(train), _made(validation))

    if isinstance(train, DataLoader) and train.batch_size and "batch" not in options:
        options["batch"] = train.batch_size
    return Task(name, model, load, **options)


def _made(part: Any) -> Any:
    return part() if inspect.isroutine(part) or inspect.isclass(part) else part


def examples(name: str, train: Any, validation: Any) -> Examples:
    """Examples of whatever holds them; without `validation`, every fifth of `train` is held out."""
    note = f"The data of task {name!r}."
    if validation is None:
        loader = _loader(train)
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(f"task {name!r} has no validation, and none can be held out of a stream: add it")
        count = len(loader.dataset)  # type: ignore[arg-type]
        held = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        cut = max(1, count // 5)

        def part(indices: list[int]) -> Any:
            subset = torch.utils.data.Subset(loader.dataset, indices)
            return DataLoader(subset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn)

        train, validation = part(held[cut:]), part(held[:cut])
    return Loaded(train, validation, note)


def read(source: str) -> Task:
    """The task in a file (`mytask.py`), or of a module (`pkg.module:task`): a `Task`, or parts of one.

    Raises:
        ValueError: if it cannot be imported, or lacks a part.
    """
    try:
        module, attribute = own.pointed(source)
        found: Any = getattr(module, attribute) if attribute else getattr(module, "task", module)
    except Exception as error:  # a file of the user's may raise whatever it likes
        raise ValueError(f"task {source!r} cannot be imported: {type(error).__name__}: {error}") from error
    name = attribute or module.__name__.rpartition(".")[2]
    if inspect.isroutine(found):
        found = found()
    if isinstance(found, Task):
        return found
    return make(
        name, found if isinstance(found, Mapping) else {k: getattr(found, k, None) for k in (*PARTS, *OPTIONAL)}
    )


def check(task: Task, data: Examples, batch: int) -> None:
    """Try the parts of a task once, before work starts.

    Raises:
        ValueError: for a batch larger than the data, a loss that is no finite number at the start, a model without
            parameters, or a metric that is no number; the message names it.
    """
    if data.count is not None and batch > data.count:
        raise ValueError(f"the batch of task {task.name!r} is {batch}, but there are {data.count} examples to train on")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = task.model()
        except Exception as error:
            raise ValueError(f"the model of task {task.name!r} cannot be made: {_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"the model of task {task.name!r} is a {type(model).__name__}, expected an nn.Module")
        if not any(param.requires_grad for param in model.parameters()):
            raise ValueError(f"the model of task {task.name!r} has no parameter to train")
        first = next(iter(data.batches(0, 1, batch)), None)
        if first is None:
            raise ValueError(f"task {task.name!r} has no examples to train on")
        model.to(next(_tensors(first), torch.empty(0)).device)
        try:
            loss = task.loss(model, first)
        except Exception as error:
            raise ValueError(f"the loss of task {task.name!r} fails on the first batch: {_line(error)}") from error
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise ValueError(f"the loss of task {task.name!r} is {type(loss).__name__} without a gradient")
        value = number(loss.detach(), f"the loss of task {task.name!r}")
        if not math.isfinite(value):
            raise ValueError(f"the loss of task {task.name!r} is {value} at the start, before any training")
        try:
            _, metric = task.judge(model, data)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"the metric of task {task.name!r} fails: {_line(error)}") from error
        if not math.isfinite(metric):
            shown = "NaN" if math.isnan(metric) else metric
            raise ValueError(f"the metric of task {task.name!r} is {shown} at the start, before any training")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
