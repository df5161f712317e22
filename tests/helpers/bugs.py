"""Bugs that other libraries have shipped, as edits of the package, and the tests that are to catch each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STATE, HOOKED, SCHEDULES = "engine/test_state.py", "engine/test_hooks.py", "engine/test_schedules.py"
COMING, PRECISION = "engine/test_coming_and_going.py", "engine/test_precision.py"
COST, SHARDING = "engine/executors/test_cost.py", "engine/sharding/test_sharding.py"
CHECKPOINTS, BAD_INPUT, LOADING = "engine/test_checkpoints.py", "engine/test_bad_input.py", "engine/test_loading.py"
STAGES, HOOKS = "engine/test_stages.py", "engine/test_backward_hooks.py"
TIMM, SENSITIVITY = "optimizers/test_timm.py", "optimizers/test_sensitivity.py"
LOOKAHEAD, ADAHESSIAN = "optimizers/test_lookahead.py", "optimizers/test_adahessian.py"
ORACLE = "optimizers/test_oracle.py"


@dataclass(frozen=True)
class Bug:
    """A bug as others shipped it.

    Attributes:
        what: what went wrong.
        where: who shipped it.
        file: the file of ours that is edited.
        right: the text there that is replaced.
        wrong: what it is replaced by.
        tests: the test file that is to notice, from tests/.
        select: which of its tests, as for ``pytest -k``.
    """

    what: str
    where: str
    file: str
    right: str
    wrong: str
    tests: str
    select: str


def bugs() -> Iterator[Bug]:
    yield from in_terms()
    yield from in_rules()
    yield from in_the_engine()
    yield from in_stages()
    yield from in_backward()
    yield from in_checkpoints()
    yield from in_storages()
    yield from on_many_machines()


def in_terms() -> Iterator[Bug]:
    kozistr, timm = "pytorch_optimizer", "timm"
    yield Bug(
        "the average is not moved in place, so it stays 0", f"{kozistr} AdaNorm, 13 classes", "terms.py",
        "return average.lerp_(x, weight)", "return average.lerp(x, weight)", TIMM, "trajectories and Lion",
    )  # fmt: skip
    yield Bug(
        "the buffer is zeroed at every step", f"{kozistr} SignSGD", "terms.py",
        "add_scaled(buffer.mul_(factor), x, gain)", "add_scaled(buffer.zero_(), x, gain)", TIMM, "trajectories and SGDW",
    )  # fmt: skip
    yield Bug(
        "the update clip is upside down", f"{kozistr} AdaFactor, {timm} AdafactorBigVision", "terms.py",
        "torch.clamp(size / limit, min=1.0)", "torch.clamp(size / limit, max=1.0)", TIMM, "trajectories and Adafactor/",
    )  # fmt: skip
    yield Bug(
        "the Rademacher probe is always -1", f"{kozistr} AdaHessian", "randomness.py",
        "& 1) * 2 - 1", "& 1) * 0 - 1", ADAHESSIAN, "probes or estimate",
    )  # fmt: skip
    yield Bug(
        "the denominator's root is left out of the bias correction", f"{kozistr} AdaBelief foreach", "terms.py",
        "return Quotient(m, torch.sqrt(v).add_(eps / debias), 1 / debias)", "return Quotient(m, torch.sqrt(v).add_(eps))", TIMM,
        "trajectories and AdaBelief",
    )  # fmt: skip
    yield Bug(
        "rectification starts from a gain of 1", "RAdam's published code", "terms.py",
        "rho_inf = 2 / (1 - beta2) - 1", "rho_inf = 2 / (1 - beta2)", TIMM, "trajectories and RAdam",
    )  # fmt: skip


def in_rules() -> Iterator[Bug]:
    kozistr, timm = "pytorch_optimizer", "timm"
    yield Bug(
        "the momentum buffer starts as the parameter", f"{kozistr} SGDW", "optimizers/sgd.py",
        'return {"momentum_buffer": signed()}', 'return {"momentum_buffer": Slot(start="parameter")}',
        TIMM, "trajectories and SGDW",
    )  # fmt: skip
    yield Bug(
        "foreach forgets nesterov", f"{kozistr} SGDW", "optimizers/sgd.py",
        "if k.nesterov else s.momentum_buffer", "if k.nesterov and isinstance(g, Tensor) else s.momentum_buffer",
        TIMM, "trajectories and SGDW",
    )  # fmt: skip
    yield Bug(
        "the buffer starts with the gradient before trust", f"{kozistr} LARS", "optimizers/sgd.py",
        "ratio = torch.where((p_norm > 0) & (g_norm > 0), ratio, 1.0)",
        "ratio = torch.where((p_norm > 0) & (g_norm > 0) & torch.tensor(k.t > 1), ratio, 1.0)",
        TIMM, "trajectories and Lars",
    )  # fmt: skip
    yield Bug(
        "LAMB's clip amplifies", f"{kozistr} LAMB", "optimizers/lamb.py",
        "g = g / clip_ratio(", "g = g * clip_ratio(", TIMM, "trajectories and Lamb",
    )  # fmt: skip
    yield Bug(
        "LAMB's clip writes to p.grad", f"{timm} Lamb until 1.0.28", "optimizers/lamb.py",
        "g = g / clip_ratio(k.overall_norm(g), k.max_grad_norm)",
        "g = g.div_(clip_ratio(k.overall_norm(g), k.max_grad_norm))", STATE, "never_written and Lamb",
    )  # fmt: skip
    yield Bug(
        "nesterov's look ahead is not normalised", f"{kozistr} AdamP", "optimizers/projected.py",
        "blend(s.exp_avg, g, k.weight1) if k.nesterov", "s.exp_avg * k.beta1 + g if k.nesterov",
        TIMM, "trajectories and AdamP",
    )  # fmt: skip
    yield Bug(
        "the last gradient is an alias of this one", f"{kozistr} and {timm} MARS", "optimizers/mars.py",
        "plus(g, g - s.last_grad, k.change)", "plus(g, g - g, k.change)", TIMM, "trajectories and Mars",
    )  # fmt: skip
    yield Bug(
        "centring edits the state in place", f"{kozistr} LaProp", "optimizers/rmsprop.py",
        "return s.square_avg - s.grad_avg * s.grad_avg", "return s.square_avg.sub_(s.grad_avg * s.grad_avg)",
        TIMM, "trajectories and RMSpropTF",
    )  # fmt: skip
    yield Bug(
        "a centred variance below 0 gives NaN", f"{timm} RMSpropTF", "optimizers/rmsprop.py",
        "avg = avg.clamp_min(0.0)", "avg = avg", STATE, "variance_of_nothing",
    )  # fmt: skip
    yield Bug(
        "the root of the columns is taken in their state", f"{kozistr} AdaFactor foreach", "optimizers/adafactor.py",
        "* torch.rsqrt(cols)", "* cols.rsqrt_()", TIMM, "trajectories and Adafactor/",
    )  # fmt: skip
    yield Bug(
        "the row factor loses its mean", f"{timm} AdafactorBigVision until 1.0.28", "optimizers/adafactor.py",
        "torch.rsqrt(rows / mean_of_rows)", "torch.rsqrt(rows)", TIMM, "trajectories and Adafactor/",
    )  # fmt: skip
    yield Bug(
        "lr=0 counts as no lr", f"{timm} Adafactor until 1.0.28", "optimizers/adafactor.py",
        "if rate is None:", "if not rate:", STATE, "at_lr_zero and Adafactor",
    )  # fmt: skip
    yield Bug(
        "a step of 1 once the scheduler reaches lr 0", f"{timm} LaProp until 1.0.28", "optimizers/laprop.py",
        "choose(moving, h.lr / ", "choose(moving, (h.lr or 1.0) / ", STATE, "once_lr_is_zero and LaProp",
    )  # fmt: skip
    yield Bug(
        "foreach drops AdaBelief's bias correction", f"{kozistr} AdaBelief", "optimizers/adabelief.py",
        "var, k.debias2, k.eps)", "var, k.debias2 if isinstance(g, Tensor) else 1.0, k.eps)",
        TIMM, "trajectories and AdaBelief",
    )  # fmt: skip
    yield Bug(
        "decay that is not decoupled is none at all", f"{kozistr} RAdam, AdamP, Prodigy", "optimizers/radam.py",
        'if h.decoupled_weight_decay else "coupled"', 'if h.decoupled_weight_decay else "none"', TIMM, "radam",
    )  # fmt: skip
    yield Bug(
        "the update clip looks at a stale second moment", f"{kozistr} StableAdamW foreach", "optimizers/stable_adamw.py",
        "        moments(g, s, k)\n        slower = clip_ratio(k.rms(g / torch.sqrt(s.exp_avg_sq).clamp_min(k.eps)), 1.0)\n",
        "        slower = clip_ratio(k.rms(g / torch.sqrt(s.exp_avg_sq).clamp_min(k.eps)), 1.0)\n        moments(g, s, k)\n",
        ORACLE, "float64 and StableAdamW-default",
    )  # fmt: skip
    yield Bug(
        "the learning rate follows the shape the wrong way round", f"{kozistr} Muon", "optimizers/muon.py",
        "return 0.2 * max(rows, columns) ** 0.5", "return 0.2 * max(rows, columns) ** -0.5",
        TIMM, "trajectories and Muon/default",
    )  # fmt: skip
    yield Bug(
        "the learning rate of a convolution follows its kernel", f"{timm} AdaMuon until 1.0.28", "optimizers/muon.py",
        "matrices_shape(h, p)[-2:]", "p.shape[-2:]", TIMM, "trajectories and Muon/algo",
    )  # fmt: skip
    yield Bug(
        "momentum=1 divides by zero", f"{timm} SGDP", "optimizers/projected.py",
        "Range(ge=0, lt=1, why=", "Range(ge=0, lt=3, why=", BAD_INPUT, "momentum_of_one",
    )  # fmt: skip
    yield Bug(
        "amsgrad keeps no maximum", "several", "terms.py",
        "return maximum.clamp_min_(x)", "return maximum.copy_(x)", TIMM, "trajectories and amsgrad",
    )  # fmt: skip
    yield Bug(
        "closures run without gradients", f"{timm} Adahessian until 1.0.28", "engine/optimizer.py",
        "with torch.enable_grad():\n                loss = closure()", "with torch.no_grad():\n                loss = closure()",
        HOOKED, "closure_runs and Adahessian",
    )  # fmt: skip


def in_the_engine() -> Iterator[Bug]:
    kozistr, timm = "pytorch_optimizer", "timm"
    yield Bug(
        "the step writes lr times the buffer into the buffer", f"{kozistr} CAME on vectors", "engine/update.py",
        "    add_scaled(p, d, -k.step_size)", "    p.sub_(d.mul_(k.step_size))", TIMM, "trajectories and SGDW",
    )  # fmt: skip
    yield Bug(
        "steps count by two", f"{kozistr} Prodigy", "engine/counters.py",
        "self._together.add_(1)", "self._together.add_(2)", STATE, "step_counts",
    )  # fmt: skip
    yield Bug(
        "weight decay is accepted and never applied", f"{kozistr} SignSGD", "engine/update.py",
        'if k.decay == "coupled":', "if False:", TIMM, "factory_names and sgd",
    )  # fmt: skip
    yield Bug(
        "maximize negates p.grad", f"{kozistr}, 81 files", "engine/update.py",
        "g = -g", "g = g.neg_()", STATE, "never_written and AdamW",
    )  # fmt: skip
    yield Bug(
        "coupled decay is added into p.grad", f"{timm} AdaBelief, MADGRAD until 1.0.28", "engine/update.py",
        "g = plus(g, p, k.weight_decay)", "g = g.add_(p * k.weight_decay)", STATE, "never_written and Adam",
    )  # fmt: skip
    yield Bug(
        "foreach decays once more", f"{timm} SGDW until 1.0.28", "engine/update.py",
        "        scale(p, k.decay_factor if amount is None else 1 - amount)",
        "        scale(scale(p, k.decay_factor), 1.0 if isinstance(p, Tensor) else k.decay_factor)",
        TIMM, "trajectories and SGDW",
    )  # fmt: skip
    yield Bug(
        "a group's own options are ignored", f"{kozistr}, options on self", "engine/optimizer.py",
        "self.option_names(group), group, scaling)", "self.option_names(group), {**group, **self.defaults}, scaling)",
        TIMM, "trajectories and AdamW",
    )  # fmt: skip
    yield Bug(
        "one step counter for the whole group", f"{kozistr}, 117 places; {timm} Lamb, Adan", "engine/plan.py",
        "tell(job, r, step + 1)", 'tell(job, r, r.__dict__.setdefault("first", step + 1))', COMING,
        "late_first and AdamW",
    )  # fmt: skip
    yield Bug(
        "scalars of the first group serve all", f"{timm} RAdam until 1.0.28", "engine/resolved.py",
        "self.made: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {}",
        'self.made: Any = vars(Rule).get("_buffer") or (setattr(Rule, "_buffer", {0: None}) or Rule._buffer)', TIMM, "trajectories and RAdam",
    )  # fmt: skip
    yield Bug(
        "foreach takes the first parameter's step for all", f"{timm} Adopt until 1.0.28", "engine/executors/foreach.py",
        "            id(job.known),\n            job.device,", "            0,\n            job.device,", COMING, "late_first and Adopt",
    )  # fmt: skip
    yield Bug(
        "the decay's reference follows a tensor lr", f"{timm}, corrected decay until 1.0.28", "engine/optimizer.py",
        '{"max_lr_snapshot": float(self.defaults["lr"])}', '{"max_lr_snapshot": self.defaults["lr"]}', STATE, "tensor and AdamW",
    )  # fmt: skip
    yield Bug(
        "complex parameters are not taken as pairs", f"{timm} AdamWLegacy until 1.0.28", "engine/job.py",
        "return torch.view_as_real(x) if x.is_complex() else x", "return x", COMING, "complex and AdamW",
    )  # fmt: skip
    yield Bug(
        "gradients in another layout are read in the wrong order", "raw-pointer kernels", "engine/job.py",
        "if not (g.is_contiguous() and p.is_contiguous()) and g.stride() != p.stride():", "if g.shape != p.shape:", PRECISION, "memory_layouts and SGD",
    )  # fmt: skip
    yield Bug(
        "bfloat16 parameters are moved in a copy", "mixed-precision code", "engine/executors/foreach.py",
        "        torch._foreach_copy_(list(tensors), _parts(value, tensors))", "        pass", PRECISION, "bfloat16 and SGD",
    )  # fmt: skip
    yield Bug(
        "a closure is called twice", "several", "engine/optimizer.py",
        "                loss = closure()", "                closure()\n                loss = closure()",
        HOOKED, "closure_runs and SGD",
    )  # fmt: skip
    yield Bug(
        "a misspelt option is accepted", f"{kozistr}, all 122 classes", "engine/options.py",
        "        if name not in known:", "        if not name:", BAD_INPUT, "unknown_options and Adam",
    )  # fmt: skip
    yield Bug(
        "betas of 1 are accepted", f"{timm} AdamP, RAdam", "engine/ranges.py",
        "Beta = Annotated[float, Range(ge=0, lt=1)]", "Beta = Annotated[float, Range(ge=0, lt=9)]", BAD_INPUT, "bad_values and AdamP",
    )  # fmt: skip
    yield Bug(
        "one operation a tensor in foreach", f"{timm}, trust ratios", "engine/tensorlist.py",
        "        return TensorList(torch._foreach_mul(self.tensors, _operand(other)))",
        "        return TensorList.each(torch.mul, self, other)", COST, "dispatches and NAdamW",
    )  # fmt: skip
    yield Bug(
        "the loop holds a temporary of the whole parameter", "every loop over parameters", "engine/executors/loop.py",
        "if p.numel() <= most", "if p.numel() <= most * 2**20", COST, "few_pieces and AdamW",
    )  # fmt: skip
    yield Bug(
        "an option is accepted and does nothing", f"{kozistr}, use_palm and others", "engine/update.py",
        "    if k.grams:", "    if False:", SENSITIVITY, "common and AdamW",
    )  # fmt: skip


def in_stages() -> Iterator[Bug]:
    ours, text = "ours, planted", "engine/update.py"
    yield Bug(
        "caution divides by at least 1e-2 instead of 1e-3", ours, text,
        "torch.clamp(k.mean(agrees), min=1e-3)", "torch.clamp(k.mean(agrees), min=1e-2)", STAGES, "loop and AdamW and caution",
    )  # fmt: skip
    yield Bug(
        "cautious decay leaves out what has no direction", ours, text,
        "add_scaled(p, p + p * opposed, -(",
        "add_scaled(p, p * torch.sign(p * value_of(d)).clamp_min(0.0), -(",
        STAGES, "loop and Lion and cautious_weight_decay",
    )  # fmt: skip
    yield Bug(
        "a unit that is zero is clipped to nothing", ours, text,
        "torch.clamp(p_norm, min=1e-3) * k.adaptive_grad_clip", "p_norm * k.adaptive_grad_clip",
        STAGES, "loop and SGD and adaptive_grad_clip",
    )  # fmt: skip
    yield Bug(
        "each element of a vector is a unit", ours, text,
        "        p_norm, g_norm = k.norms(p, g)\n", "        p_norm, g_norm = torch.abs(p), torch.abs(g)\n",
        STAGES, "loop and SGD and adaptive_grad_clip",
    )  # fmt: skip
    yield Bug(
        "the update clip ignores the bias correction", ours, text,
        "k.rms(d) * k.gain", "k.rms(d)", STAGES, "loop and AdamW and update_clip",
    )  # fmt: skip
    yield Bug(
        "hyperball: a zero parameter steps by lr times the raw direction", ours, text,
        "torch.where(usable, d_norm, 1.0), k.gain)", "torch.where(usable, d_norm, 1.0), 1.0)",
        STAGES, "loop and AdamW and hyperball",
    )  # fmt: skip
    yield Bug(
        "carried scalars go on in a step that a scaler skips", ours, "engine/counters.py",
        "        if skipped is not None:\n            values =", "        if False:\n            values =",
        STAGES, "scaler_skips",
    )  # fmt: skip


def in_backward() -> Iterator[Bug]:
    hooks = "engine/backward_hooks.py"
    yield Bug(
        "a dropped optimizer's hooks stay", "ours", hooks, "handle.remove()", "pass", HOOKS, "dropped_optimizer_is_freed and loop",
    )  # fmt: skip
    yield Bug(
        "a refused gradient stays for step()", "ours", hooks, "            p.grad = None", "            pass",
        HOOKS, "refused_gradient and loop",
    )  # fmt: skip
    yield Bug(
        "zero_grad() does not begin the step again", "ours", "engine/optimizer.py",
        "super().zero_grad(set_to_none)\n        self._moved.clear()", "super().zero_grad(set_to_none)",
        HOOKS, "error_inside_backward and loop",
    )  # fmt: skip


def in_checkpoints() -> Iterator[Bug]:
    kozistr, timm = "pytorch_optimizer", "timm"
    yield Bug(
        "float32 state of bfloat16 parameters is rounded at load", f"{timm} until 1.0.28, torch", "engine/placing.py",
        "    value = _fitted(value, start)\n", "    value = _fitted(value, start).to(p.dtype)\n",
        CHECKPOINTS, "rounded and AdamW",
    )  # fmt: skip
    yield Bug(
        "the curvature is not in the checkpoint", f"{timm} Adahessian", "engine/placing.py",
        "    for name, value in entry.items():\n        try:",
        '    for name, value in entry.items():\n        if name == "hessian":\n            continue\n        try:',
        CHECKPOINTS, "resumed and Adahessian and update_each",
    )  # fmt: skip
    yield Bug(
        "names are saved and ignored at load", "torch", "engine/checkpoint.py",
        "    if mine is not None and theirs is not None and mine != theirs:", "    if False:",
        CHECKPOINTS, "named and AdamW",
    )  # fmt: skip
    yield Bug(
        "names that match in part are left to the position", "torch, ours until 0.1", "engine/checkpoint.py",
        "    if strict and any(differing):", "    if strict and not set(known) & set(home):", LOADING, "differ_are_listed and AdamW",
    )  # fmt: skip
    yield Bug(
        "a distributed checkpoint's names are taken for its order", "ours until 0.1", "engine/checkpoint.py",
        "all(isinstance(key, str) for key in _flat(keys))", "False", LOADING, "matched_names_already",
    )  # fmt: skip
    yield Bug(
        "options of a named group come from where its last parameter was", "none yet", "engine/checkpoint.py",
        "for name in names if name in home), None)", "for name in reversed(names) if name in home), None)",
        LOADING, "first_parameter_was and AdamW",
    )  # fmt: skip
    yield Bug(
        "steps that were counted for the group begin again", "none yet", "engine/checkpoint.py",
        'source.group.get("step", 1)', "1", LOADING, "any_form and group and loop",
    )  # fmt: skip
    yield Bug(
        "state without steps counts as fresh", "none yet", "engine/checkpoint.py",
        'source.group.get("step", 1)', 'source.group.get("step", 0)', LOADING, "counts_no_steps and AdamW",
    )  # fmt: skip
    yield Bug(
        "the file decides how to run", "torch", "engine/checkpoint.py",
        '("params", "param_names", "step", *EXECUTION_DEFAULTS)', '("params", "param_names", "step")',
        LOADING, "loaders and AdamW",
    )  # fmt: skip
    yield Bug(
        "options of a file are not checked", "torch", "engine/checkpoint.py",
        "                optimizer.check_group(groups[-1])", "                pass", LOADING, "constructors and AdamW",
    )  # fmt: skip
    yield Bug(
        "slow weights are lost at load", f"{kozistr} Lookahead", "engine/placing.py",
        "            elif name in slots:\n", "            elif name in extra:\n                pass\n            elif name in slots:\n",
        LOOKAHEAD, "goes_on_exactly and state_dict",
    )  # fmt: skip
    yield Bug(
        "a copy loses its base optimizer", f"{timm} Lookahead", "optimizers/wrapper.py",
        '"base_optimizer": self.base_optimizer}', "}", LOOKAHEAD, "goes_on_exactly and deepcopy",
    )  # fmt: skip
    yield Bug(
        "a checkpoint of the base optimizer alone is a KeyError", f"{timm} Lookahead", "optimizers/wrapper.py",
        "                group.setdefault(name, self.defaults[name])", "                pass",
        LOOKAHEAD, "base_optimizer_alone",
    )  # fmt: skip
    yield Bug(
        "an older pickle loses options that are new", f"{kozistr}, options on self in 117 classes", "engine/optimizer.py",
        "            for name, default in self.defaults.items():\n                group.setdefault(name, default)",
        "            pass", CHECKPOINTS, "older_pickle",
    )  # fmt: skip


def in_storages() -> Iterator[Bug]:
    storage, offload = "engine/storage.py", "engine/executors/offload.py"
    yield Bug(
        "small steps of short averages are lost", "bitsandbytes, torchao 4-bit", storage,
        "        if rng is not None:\n            y = self._either", "        if False:\n            y = self._either",
        "engine/test_storage.py", "four_bits",
    )  # fmt: skip
    yield Bug(
        "halves of a block share their rng", "none yet", storage,
        "replace(rng, part=(i, 2)) for i in range(2)]", "rng for i in range(2)]", "engine/test_storage.py", "four_bits",
    )  # fmt: skip
    yield Bug(
        "blocks are laid out again without their scales", "ours", "engine/executors/fused.py",
        "job.storage.laid_as(job.local_param.detach(), name, state, job.stored).items()",
        "{name: torch.empty_like(job.local_param, dtype=state[name].dtype).copy_(state[name])}.items()",
        "engine/test_storage_engine.py", "another_order and fused and int8",
    )  # fmt: skip
    yield Bug(
        "state on the host is not written back", "none yet", offload,
        "job.local_state[name].copy_(\n", "torch.empty_like(job.local_state[name]).copy_(\n",
        "engine/test_offload.py", "same_bits and AdamW and loop",
    )  # fmt: skip
    yield Bug(
        "state on the host keeps the memory layout that its parameter had", "none yet", offload,
        "any(job.local_param.stride() != stride for", "any(False for", "engine/test_offload.py", "another_memory_layout",
    )  # fmt: skip


def on_many_machines() -> Iterator[Bug]:
    yield Bug(
        "norms stop at the shard", "DeepSpeed, fairscale LAMB", "engine/sharding/layout.py",
        "        return tuple(i for i, d in self.sharded if dims is None or d in dims)", "        return ()",
        SHARDING, "every_layout and NvNovoGrad",
    )  # fmt: skip
    yield Bug(
        "a mean divides by the elements of the shard", "microsoft/dion NorMuon", "engine/job.py",
        "        if self.layout is None:\n            return tuple(self.view.shape)\n",
        "        if True:\n            return tuple(self.view.shape)\n", SHARDING, "every_layout and Adafactor and 2",
    )  # fmt: skip
    yield Bug(
        "random bits follow the shard", "torchao", "engine/job.py",
        "            first = self.layout.first\n", "", SHARDING, "same_bits and AdamW and stochastic",
    )  # fmt: skip
    yield Bug(
        "sums go over all processes, replicas too", "Prodigy, Adam-mini", "engine/sharding/layout.py",
        "            if hasattr(placement, \"dim\") and self.mesh.size(i) > 1",
        "            for placement in [placement if hasattr(placement, \"dim\") else self.placements[-1]]",
        SHARDING, "every_layout and NvNovoGrad and replicas",
    )  # fmt: skip
    yield Bug(
        "a matrix is moved shard by shard", "distributed Shampoo", "engine/executors/__init__.py",
        "    return job.rule.reach == \"matrix\" or", "    return False and",
        SHARDING, "every_layout and Muon and 2",
    )  # fmt: skip
    yield Bug(
        "a gradient that one process lacks skips its shard", "distributed Shampoo", "engine/plan.py",
        "    return layout is not None and bool(layout.sharded)\n", "    return False\n",
        SHARDING, "one_rank_lacks and Adafactor",
    )  # fmt: skip
    yield Bug(
        "state of a shard is saved as if it were the whole", "kron_torch, HeavyBall", "engine/sharding/layout.py",
        "        return placement if kept == placement.dim else Shard(kept)", "        return Replicate()",
        SHARDING, "one_layout_to_another and Adafactor",
    )  # fmt: skip
