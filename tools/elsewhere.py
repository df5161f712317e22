"""Names of the same optimizers in transformers and in kohya's scripts, by class."""

from __future__ import annotations

#: ``TrainingArguments(optim=...)`` of transformers 5.24.
TRANSFORMERS: dict[str, tuple[str, ...]] = {
    "Adafactor": ("adafactor",),
    "Adagrad": ("adagrad",),
    "AdamW": (
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_torch_8bit",
        "adamw_torch_4bit",
        "adamw_bnb_8bit",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
    ),
    "AdEMAMix": ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    "Lion": ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    "RMSprop": ("rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    "ScheduleFreeAdamW": ("schedule_free_adamw",),
    "ScheduleFreeRAdam": ("schedule_free_radam",),
    "ScheduleFreeSGD": ("schedule_free_sgd",),
    "SGD": ("sgd",),
    "StableAdamW": ("stable_adamw",),
}

#: ``--optimizer_type`` of kohya's sd-scripts, as of 2026.
KOHYA: dict[str, tuple[str, ...]] = {
    "Adafactor": ("Adafactor",),
    "AdamW": ("AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit"),
    "AdEMAMix": ("AdEMAMix8bit", "PagedAdEMAMix8bit"),
    "Lion": ("Lion", "Lion8bit", "PagedLion8bit"),
    "Prodigy": ("Prodigy",),
    "ScheduleFreeAdamW": ("AdamWScheduleFree",),
    "ScheduleFreeRAdam": ("RAdamScheduleFree",),
    "ScheduleFreeSGD": ("SGDScheduleFree",),
    "SGD": ("SGDNesterov", "SGDNesterov8bit"),
}

#: Classes of torch.optim whose rule has another name here.
TORCH = {"TorchAdafactor": "Adafactor"}
