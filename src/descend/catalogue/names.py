"""The table of all names: class, bound options, paper, and where to look for a learning rate first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from descend.catalogue import papers
from descend.catalogue.info import OptimInfo, Paper

#: Second names.
ALIASES = {"nesterov": "sgd", "nesterovw": "sgdw"}

_ADAM_LR = (6e-5, 1e-3)
_ADAM_SOURCE = "6e-5 (175B parameters) to 6e-4 (125M) in GPT-3, arXiv 2005.14165; 1e-3 in Adam's paper"
_SGD_LR = (0.025, 3.2)
_SGD_SOURCE = "0.1 for every 256 images, arXiv 1706.02677: batches of 64 to 8192"
_AROUND_DEFAULT = "the default, and up to a factor of ten on either side"


def all_names() -> Iterator[OptimInfo]:
    """Every name but the aliases."""
    yield from _sgd()
    yield from _adam()
    yield from _adam_relatives()
    yield from _layerwise()
    yield from _factored()
    yield from _sign_and_averaging()
    yield from _matrix()
    yield from _accumulating()
    yield from _apex()
    yield from _bitsandbytes()
    yield from _more_from_torch()
    yield from _frontier()


def _sgd() -> Iterator[OptimInfo]:
    sgd = OptimInfo(
        "sgd",
        "descend.optimizers.SGD",
        "Stochastic gradient descent with Nesterov momentum",
        has_eps=False,
        has_momentum=True,
        defaults={"nesterov": True},
        paper=papers.NESTEROV,
        suggested_lr=_SGD_LR,
        lr_source=_SGD_SOURCE,
    )
    sgdw = replace(
        sgd,
        name="sgdw",
        opt_class="descend.optimizers.SGDW",
        description="SGD with Nesterov momentum and decoupled weight decay",
        paper=papers.DECOUPLED_DECAY,
    )
    sgdp = replace(
        sgd,
        name="sgdp",
        opt_class="descend.optimizers.SGDP",
        description="SGD whose step on scale-invariant weights stays on their sphere",
        has_eps=True,
        paper=papers.ADAMP,
    )
    yield sgd
    yield _variant(
        sgd, "momentum", "Stochastic gradient descent with heavy-ball momentum", papers.HEAVY_BALL, nesterov=False
    )
    yield sgdw
    yield (csgdw := _cautious(sgdw, "csgdw"))
    yield _corrected(sgdw, "sgdc")
    yield _corrected(csgdw, "csgdc")
    yield sgdp
    yield _cautious(sgdp, "csgdp")


def _adam() -> Iterator[OptimInfo]:
    adam = _like_adam("adam", "Adam", "Adaptive moment estimation, weight decay in the gradient", papers.ADAM)
    adamw = _like_adam("adamw", "AdamW", "Adam with decoupled weight decay", papers.DECOUPLED_DECAY)
    nadamw = replace(
        _like_adam("nadamw", "NAdamW", "AdamW with Nesterov's look ahead in the first moment", papers.ALGOPERF),
        suggested_lr=(1e-4, 1e-2),
        lr_source="search space of AlgoPerf's baseline, arXiv 2306.07179",
    )
    radam = _like_adam("radam", "RAdam", "Adam with a rectified start, weight decay in the gradient", papers.RADAM)
    yield _variant(radam, "radam", radam.description, decoupled_weight_decay=False)
    yield _variant(
        radam, "radamw", "Adam with a rectified start and decoupled weight decay", decoupled_weight_decay=True
    )
    yield _variant(radam, "radamlegacy", "RAdam as timm had it, with decoupled weight decay")
    yield adam
    yield adamw
    yield _variant(adamw, "adamwlegacy", "AdamW under timm's older name")
    yield (cadamw := _cautious(adamw, "cadamw"))
    yield _corrected(adamw, "adamc")
    yield _corrected(cadamw, "cadamc")
    yield _like_adam("nadam", "NAdam", "Adam with Nesterov momentum on a schedule", papers.NADAM)
    yield _like_adam("nadamlegacy", "Nadam", "NAdam as timm had it", papers.NADAM)
    yield nadamw
    yield (cnadamw := _cautious(nadamw, "cnadamw"))
    yield _corrected(nadamw, "nadamc")
    yield _corrected(cnadamw, "cnadamc")
    yield replace(
        _like_adam("adamax", "Adamax", "Adam with the largest gradient instead of the second moment", papers.ADAM),
        suggested_lr=(2e-4, 2e-2),
        lr_source=_AROUND_DEFAULT,
    )


def _adam_relatives() -> Iterator[OptimInfo]:
    adamp = _variant(
        _like_adam("adamp", "AdamP", "Adam whose step on scale-invariant weights stays on their sphere", papers.ADAMP),
        "adamp",
        wd_ratio=0.01,
        nesterov=True,
    )
    adabelief = replace(
        _like_adam("adabelief", "AdaBelief", "Adam with the variance of the gradient's error", papers.ADABELIEF),
        suggested_lr=(1e-4, 1e-2),
        lr_source="1e-4 to 1e-2 in its repository's table of hyper-parameters, by task",
    )
    adopt = _like_adam("adopt", "Adopt", "Adam that normalises before it averages", papers.ADOPT)
    adoptw = _variant(adopt, "adoptw", "ADOPT with decoupled weight decay", decoupled=True)
    laprop = replace(
        _like_adam("laprop", "LaProp", "Adam with momentum of the normalised gradient", papers.LAPROP),
        suggested_lr=(4e-5, 4e-3),
        lr_source=_AROUND_DEFAULT,
    )
    mars = replace(
        _like_adam("mars", "Mars", "AdamW on a gradient of reduced variance", papers.MARS),
        suggested_lr=(2e-3, 6e-3),
        lr_source="2e-3 (770M parameters) to 6e-3 (125M) for GPT-2 in its repository",
    )
    adan = replace(
        _like_adam(
            "adan", "Adan", "Nesterov momentum from differences of gradients, proximal weight decay", papers.ADAN
        ),
        num_betas=3,
        suggested_lr=(3e-4, 1e-2),
        lr_source="5 to 10 times Adam's, in its repository",
    )
    adahessian = OptimInfo(
        "adahessian",
        "descend.optimizers.Adahessian",
        "Adam with a probe of the Hessian's diagonal instead of the gradient",
        has_betas=True,
        second_order=True,
        paper=papers.ADAHESSIAN,
        suggested_lr=(1e-2, 1.0),
        lr_source=_AROUND_DEFAULT,
    )
    yield adamp
    yield _cautious(adamp, "cadamp")
    yield _variant(adabelief, "adabelief", rectify=False)
    yield _variant(adabelief, "radabelief", "AdaBelief with a rectified start", rectify=True)
    yield adopt
    yield adoptw
    yield _corrected(adoptw, "adoptc")
    yield _cautious(adopt, "cadopt")
    yield (cadoptw := _cautious(adoptw, "cadoptw"))
    yield _corrected(cadoptw, "cadoptc")
    yield laprop
    yield _cautious(laprop, "claprop")
    yield _corrected(laprop, "lapropc")
    yield mars
    yield _cautious(mars, "cmars")
    yield (prox := _variant(adan, "adan", no_prox=False))
    yield (noprox := _variant(adan, "adanw", "Adan with the weight decay of AdamW", no_prox=True))
    yield _cautious(prox, "cadan")
    yield _cautious(noprox, "cadanw")
    yield adahessian


def _layerwise() -> Iterator[OptimInfo]:
    lamb = OptimInfo(
        "lamb",
        "descend.optimizers.Lamb",
        "Adam with a trust ratio for every tensor",
        has_betas=True,
        paper=papers.LAMB,
        suggested_lr=(1e-3, 1e-2),
        lr_source="5e-3 to 8e-3 for ResNet-50 at batch 2048, arXiv 2110.00476",
    )
    lambw = _variant(lamb, "lambw", "LAMB with decoupled weight decay", decoupled_decay=True)
    lars = OptimInfo(
        "lars",
        "descend.optimizers.Lars",
        "SGD with a trust ratio for every tensor",
        has_momentum=True,
        paper=papers.LARS,
        suggested_lr=(0.2, 4.8),
        lr_source="0.2 (BYOL, arXiv 2006.07733) to 0.3 (SimCLR, arXiv 2002.05709) per 256 images, to batch 4096",
    )
    novograd = OptimInfo(
        "novograd",
        "descend.optimizers.NvNovoGrad",
        "Momentum of gradients that are normalised tensor by tensor",
        has_betas=True,
        paper=papers.NOVOGRAD,
        suggested_lr=(1e-4, 1e-2),
        lr_source=_AROUND_DEFAULT,
    )
    novogradw = _variant(novograd, "novogradw", "NovoGrad with decoupled weight decay", decoupled_decay=True)
    yield lamb
    yield _variant(lamb, "lambc", "LAMB with trust ratios of at most 1", trust_clip=True)
    yield lambw
    yield _variant(lambw, "lambcw", "LAMB with decoupled weight decay and trust ratios of at most 1", trust_clip=True)
    yield _corrected(lambw, "lambcd")
    yield _cautious(lamb, "clamb")
    yield _cautious(lambw, "clambw")
    yield lars
    yield _variant(lars, "larc", "LARS with trust ratios of at most 1", trust_clip=True)
    yield _variant(lars, "nlars", "LARS with Nesterov momentum", nesterov=True)
    yield _variant(
        lars, "nlarc", "LARS with Nesterov momentum and trust ratios of at most 1", nesterov=True, trust_clip=True
    )
    yield novograd
    yield novogradw
    yield _corrected(novogradw, "novogradc")


def _factored() -> Iterator[OptimInfo]:
    adafactor = OptimInfo(
        "adafactor",
        "descend.optimizers.Adafactor",
        "Adam with the second moment kept as row and column means",
        has_betas=True,
        paper=papers.ADAFACTOR,
        suggested_lr=(1e-3, 1e-2),
        lr_source="1e-3 in fine-tuning to 1e-2 in pre-training T5, arXiv 1910.10683",
    )
    big_vision = OptimInfo(
        "adafactorbv",
        "descend.optimizers.AdafactorBigVision",
        "Adafactor as Big Vision trains ViTs, with momentum in bfloat16",
        has_momentum=True,
        paper=papers.SCALING_VIT,
        suggested_lr=_ADAM_LR,
        lr_source=f"made to take Adam's, arXiv 2106.04560: {_ADAM_SOURCE}",
    )
    yield adafactor
    yield _variant(_cautious(adafactor, "cadafactor"), "cadafactor", betas=(0.9, 0.999))
    yield big_vision
    yield (cautious := _cautious(big_vision, "cadafactorbv"))
    yield _corrected(big_vision, "adafactorbvc")
    yield _corrected(cautious, "cadafactorbvc")


def _sign_and_averaging() -> Iterator[OptimInfo]:
    lion = OptimInfo(
        "lion",
        "descend.optimizers.Lion",
        "The sign of an interpolated momentum",
        has_eps=False,
        has_betas=True,
        paper=papers.LION,
        suggested_lr=(6e-6, 3e-4),
        lr_source=f"3 to 10 times below AdamW's, section 5 of the paper: {_ADAM_SOURCE}",
    )
    madgrad = OptimInfo(
        "madgrad",
        "descend.optimizers.MADGRAD",
        "Dual averaging with the cube root of summed squares",
        has_momentum=True,
        paper=papers.MADGRAD,
        suggested_lr=(2.5e-4, 2.5e-2),
        lr_source="best values in its repository: 2.5e-4 (CIFAR-10), 1e-3 (ImageNet), 5e-3 (RoBERTa), 2.5e-2 (IWSLT14)",
    )
    yield lion
    yield (clion := _cautious(lion, "clion"))
    yield _corrected(lion, "lionc")
    yield _corrected(clion, "clionc")
    yield madgrad
    yield _variant(madgrad, "madgradw", "MADGRAD with decoupled weight decay", decoupled_decay=True)


def _matrix() -> Iterator[OptimInfo]:
    kron = OptimInfo(
        "kron",
        "descend.optimizers.Kron",
        "PSGD: a Kronecker-factored preconditioner learned on a Lie group",
        has_eps=False,
        has_momentum=True,
        paper=papers.PSGD,
        suggested_lr=(2e-5, 1e-3),
        lr_source="about 3 times below Adam's in the repository kron_torch, up to timm's default",
    )
    kronw = _variant(kron, "kronw", "PSGD Kron with decoupled weight decay", decoupled_decay=True)
    muon = OptimInfo(
        "muon",
        "descend.optimizers.Muon",
        "Momentum of matrices, orthogonalised; AdamW for everything else",
        has_momentum=True,
        has_betas=True,
        paper=papers.MUON,
        suggested_lr=(2e-4, 2e-2),
        lr_source="AdamW's for match_rms_adamw (arXiv 2502.16982) to 2e-2 for the original scale (arXiv 2411.10438)",
    )
    yield kron
    yield kronw
    yield _corrected(kronw, "kronc")
    yield muon
    yield _variant(muon, "nmuon", "Muon with Nesterov momentum; NAdamW for everything else", nesterov=True)
    yield _variant(
        muon, "adamuon", "Muon with a second moment of the orthogonalised step", papers.ADAMUON, algo="adamuon"
    )
    yield _variant(
        muon, "nadamuon", "AdaMuon with Nesterov momentum; NAdamW for everything else", papers.ADAMUON,
        algo="adamuon", nesterov=True,
    )  # fmt: skip


def _accumulating() -> Iterator[OptimInfo]:
    rmsprop = OptimInfo(
        "rmsprop",
        "descend.optimizers.RMSprop",
        "The gradient over its root mean square",
        has_momentum=True,
        defaults={"alpha": 0.9},
        paper=papers.RMSPROP,
        suggested_lr=(1e-3, 1e-1),
        lr_source=_AROUND_DEFAULT,
    )
    rmsproptf = replace(
        rmsprop,
        name="rmsproptf",
        opt_class="descend.optimizers.RMSpropTF",
        description="RMSprop as TensorFlow computes it: epsilon under the root, mean squares from 1",
        suggested_lr=(0.016, 0.256),
        lr_source="0.016 for every 256 images, 0.256 at batch 4096, for EfficientNet, arXiv 1905.11946",
    )
    rmsproptfw = _variant(
        rmsproptf, "rmsproptfw", "TensorFlow's RMSprop with decoupled weight decay", decoupled_decay=True
    )
    yield rmsprop
    yield rmsproptf
    yield rmsproptfw
    yield _corrected(rmsproptfw, "rmsproptfc")
    yield _cautious(rmsproptf, "crmsproptf")
    yield OptimInfo(
        "adadelta",
        "descend.optimizers.Adadelta",
        "RMSprop in the units of the parameter, from a second mean of squared steps",
        paper=papers.ADADELTA,
        suggested_lr=(0.1, 10.0),
        lr_source=_AROUND_DEFAULT,
    )
    yield OptimInfo(
        "adagrad",
        "descend.optimizers.Adagrad",
        "The gradient over the root of its summed squares",
        defaults={"eps": 1e-8},
        paper=papers.ADAGRAD,
        suggested_lr=(1e-3, 1e-1),
        lr_source=_AROUND_DEFAULT,
    )


def _apex() -> Iterator[OptimInfo]:
    """Classes of NVIDIA's apex, imported when they are used."""
    adam = OptimInfo(
        "fusedadam",
        "apex.optimizers.FusedAdam",
        "apex: Adam in one CUDA kernel",
        has_betas=True,
        defaults={"adam_w_mode": False},
        paper=papers.ADAM,
        suggested_lr=_ADAM_LR,
        lr_source=_ADAM_SOURCE,
    )
    yield OptimInfo(
        "fusedsgd",
        "apex.optimizers.FusedSGD",
        "apex: SGD with Nesterov momentum in one CUDA kernel",
        has_eps=False,
        has_momentum=True,
        defaults={"nesterov": True},
        paper=papers.NESTEROV,
        suggested_lr=_SGD_LR,
        lr_source=_SGD_SOURCE,
    )
    yield adam
    yield _variant(adam, "fusedadamw", "apex: AdamW in one CUDA kernel", papers.DECOUPLED_DECAY, adam_w_mode=True)
    yield OptimInfo(
        "fusedlamb",
        "apex.optimizers.FusedLAMB",
        "apex: LAMB in few CUDA kernels",
        has_betas=True,
        paper=papers.LAMB,
    )
    yield OptimInfo(
        "fusednovograd",
        "apex.optimizers.FusedNovoGrad",
        "apex: NovoGrad in few CUDA kernels",
        has_betas=True,
        defaults={"betas": (0.95, 0.98)},
        paper=papers.NOVOGRAD,
    )


def _bitsandbytes() -> Iterator[OptimInfo]:
    """Classes of bitsandbytes, imported when they are used."""
    sgd = OptimInfo(
        "bnbsgd",
        "bitsandbytes.optim.SGD",
        has_eps=False,
        has_momentum=True,
        defaults={"nesterov": True},
        paper=papers.EIGHT_BIT,
    )
    adam = OptimInfo("bnbadam", "bitsandbytes.optim.Adam", has_betas=True, paper=papers.EIGHT_BIT)
    for base in (
        sgd,
        adam,
        replace(adam, name="bnbadamw", opt_class="bitsandbytes.optim.AdamW"),
        replace(adam, name="bnblion", opt_class="bitsandbytes.optim.Lion", has_eps=False),
        replace(adam, name="bnbademamix", opt_class="bitsandbytes.optim.AdEMAMix", num_betas=3),
    ):
        rule = str(base.opt_class).rpartition(".")[2]
        yield replace(base, description=f"bitsandbytes: {rule} with 32-bit state")
        yield replace(
            base,
            name=f"{base.name}8bit",
            opt_class=f"{base.opt_class}8bit",
            description=f"bitsandbytes: {rule} with 8-bit state",
        )


def _more_from_torch() -> Iterator[OptimInfo]:
    """Optimizers that torch has and timm does not name."""
    yield OptimInfo(
        "asgd",
        "descend.optimizers.ASGD",
        "SGD that also averages its iterates",
        has_eps=False,
        paper=papers.ACCELERATION_BY_AVERAGING,
        suggested_lr=(1e-3, 1e-1),
        lr_source=_AROUND_DEFAULT,
    )
    yield OptimInfo(
        "rprop",
        "descend.optimizers.Rprop",
        "A step size for every weight, from the sign of its gradient; for full batches",
        has_eps=False,
        has_weight_decay=False,
        paper=papers.RPROP,
        suggested_lr=(1e-3, 1e-1),
        lr_source=_AROUND_DEFAULT,
    )
    yield OptimInfo(
        "torchadafactor",
        "descend.optimizers.TorchAdafactor",
        "Adafactor as torch has it",
        paper=papers.ADAFACTOR,
        suggested_lr=(1e-3, 1e-1),
        lr_source=_AROUND_DEFAULT,
    )


def _frontier() -> Iterator[OptimInfo]:
    """What leads today's benchmarks and timm does not have."""
    adamlike = OptimInfo("", "", has_betas=True, suggested_lr=_ADAM_LR, lr_source=f"as Adam's: {_ADAM_SOURCE}")
    soap = OptimInfo(
        "soap",
        "descend.optimizers.SOAP",
        "Adam in the eigenbasis of Shampoo's preconditioner",
        has_betas=True,
        paper=papers.SOAP,
        suggested_lr=(3e-4, 3e-2),
        lr_source="3e-3 in its repository, and up to a factor of ten on either side",
    )
    yield soap
    yield replace(
        soap,
        name="klsoap",
        opt_class="descend.optimizers.KLSOAP",
        description="SOAP with the preconditioner that is nearest in Kullback-Leibler divergence",
        paper=papers.KL_SHAMPOO,
    )
    yield replace(
        adamlike,
        name="shampoo",
        opt_class="descend.optimizers.Shampoo",
        description="Kronecker-factored preconditioner in blocks, with the length of Adam's step",
        paper=papers.SHAMPOO,
        lr_source=f"as Adam's, whose step length it takes: {_ADAM_SOURCE}",
    )
    yield OptimInfo(
        "normuon",
        "descend.optimizers.NorMuon",
        "Muon with rows of the orthogonalised step brought to one size",
        has_momentum=True,
        has_betas=True,
        paper=papers.NORMUON,
        suggested_lr=(2e-4, 2e-2),
        lr_source="as Muon's",
    )
    yield OptimInfo(
        "dion",
        "descend.optimizers.Dion",
        "Orthonormalised momentum of low rank, with error feedback",
        has_betas=True,
        paper=papers.DION,
        suggested_lr=(2e-4, 2e-2),
        lr_source="as Muon's",
    )
    yield OptimInfo(
        "scion",
        "descend.optimizers.Scion",
        "Steps to the edge of a norm ball that fits each kind of layer",
        has_momentum=True,
        has_weight_decay=False,
        paper=papers.SCION,
        suggested_lr=(2**-12, 2**-4),
        lr_source="2**-12 (nanoGPT) to 2**-4 (CIFAR-10) in its repository",
    )
    yield replace(
        adamlike,
        name="schedulefreeadamw",
        opt_class="descend.optimizers.ScheduleFreeAdamW",
        description="AdamW that averages its iterates instead of following a schedule",
        paper=papers.SCHEDULE_FREE,
        suggested_lr=(6e-5, 1e-2),
        lr_source=f"1 to 10 times AdamW's, in its repository: {_ADAM_SOURCE}",
    )
    yield replace(
        adamlike,
        name="schedulefreeradam",
        opt_class="descend.optimizers.ScheduleFreeRAdam",
        description="Schedule-free AdamW with a rectified start instead of a warm-up",
        paper=papers.SCHEDULE_FREE,
        suggested_lr=(6e-5, 1e-2),
        lr_source=f"1 to 10 times AdamW's, in its repository: {_ADAM_SOURCE}",
    )
    yield OptimInfo(
        "schedulefreesgd",
        "descend.optimizers.ScheduleFreeSGD",
        "SGD that averages its iterates instead of following a schedule",
        has_eps=False,
        has_momentum=True,
        paper=papers.SCHEDULE_FREE,
        suggested_lr=(1.0, 5.0),
        lr_source="10 to 50 times SGD's, in its repository: 0.1 for 256 images",
    )
    yield OptimInfo(
        "prodigy",
        "descend.optimizers.Prodigy",
        "Adam that estimates its own learning rate",
        has_betas=True,
        paper=papers.PRODIGY,
        suggested_lr=(0.5, 2.0),
        lr_source="1 in the paper: it multiplies the estimate",
    )
    yield replace(
        adamlike,
        name="ademamix",
        opt_class="descend.optimizers.AdEMAMix",
        description="AdamW with a second, much slower momentum",
        num_betas=3,
        paper=papers.ADEMAMIX,
    )
    yield replace(
        adamlike,
        name="stableadamw",
        opt_class="descend.optimizers.StableAdamW",
        description="AdamW whose learning rate falls where the second moment is out of date",
        paper=papers.STABLE_ADAMW,
    )
    yield replace(
        adamlike,
        name="adammini",
        opt_class="descend.optimizers.AdamMini",
        description="AdamW with one second moment for each block of weights",
        paper=papers.ADAM_MINI,
    )
    yield OptimInfo(
        "came",
        "descend.optimizers.CAME",
        "Adafactor that trusts its step where it was stable",
        has_betas=True,
        num_betas=3,
        paper=papers.CAME,
        suggested_lr=(2e-5, 2e-3),
        lr_source="2e-4 in its repository, and up to a factor of ten on either side",
    )


def _like_adam(name: str, class_name: str, description: str, paper: Paper) -> OptimInfo:
    return OptimInfo(
        name,
        f"descend.optimizers.{class_name}",
        description,
        has_betas=True,
        paper=paper,
        suggested_lr=_ADAM_LR,
        lr_source=_ADAM_SOURCE if paper is papers.ADAM else f"as Adam's: {_ADAM_SOURCE}",
    )


def _variant(
    base: OptimInfo, name: str, description: str | None = None, paper: Paper | None = None, **defaults: Any
) -> OptimInfo:
    """The same class with further options bound."""
    return replace(
        base,
        name=name,
        description=description or base.description,
        paper=paper or base.paper,
        defaults={**(base.defaults or {}), **defaults} or None,
    )


def _cautious(base: OptimInfo, name: str) -> OptimInfo:
    return _variant(base, name, f"{base.description}; cautious", papers.CAUTIOUS, caution=True)


def _corrected(base: OptimInfo, name: str) -> OptimInfo:
    return _variant(
        base,
        name,
        f"{base.description}; decay corrected by lr / max lr",
        papers.CORRECTED_DECAY,
        corrected_weight_decay=True,
    )
