"""The table of all names: class, bound options, paper, and where to look for a learning rate first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from descend.catalogue import papers
from descend.catalogue.info import OptimInfo, Paper

#: Second names.
ALIASES = {"nesterov": "sgd", "nesterovw": "sgdw"}


class Lr(NamedTuple):
    """The lowest and the highest learning rate to try first, and who says so."""

    low: float
    high: float
    source: str


_ADAM_SOURCE = "6e-5 (175B parameters) to 6e-4 (125M) in GPT-3, arXiv 2005.14165; 1e-3 in Adam's paper"
_AROUND_DEFAULT = "the default, and up to a factor of ten on either side"
_SGD = Lr(2.5e-2, 3.2, "0.1 for every 256 images, arXiv 1706.02677: batches of 64 to 8192")
_LIKE_ADAM = Lr(6e-5, 1e-3, f"as Adam's: {_ADAM_SOURCE}")
_ADAM = Lr(6e-5, 1e-3, _ADAM_SOURCE)
_NADAMW = Lr(1e-4, 1e-2, "search space of AlgoPerf's baseline, arXiv 2306.07179")
_ADAMAX = Lr(2e-4, 2e-2, _AROUND_DEFAULT)
_ADABELIEF = Lr(1e-4, 1e-2, "1e-4 to 1e-2 in its repository's table of hyper-parameters, by task")
_LAPROP = Lr(4e-5, 4e-3, _AROUND_DEFAULT)
_MARS = Lr(2e-3, 6e-3, "2e-3 (770M parameters) to 6e-3 (125M) for GPT-2 in its repository")
_ADAN = Lr(3e-4, 1e-2, "5 to 10 times Adam's, in its repository")
_ADAHESSIAN = Lr(1e-2, 1.0, _AROUND_DEFAULT)
_LAMB = Lr(1e-3, 1e-2, "5e-3 to 8e-3 for ResNet-50 at batch 2048, arXiv 2110.00476")
_LARS = Lr(0.2, 4.8, "0.2 (BYOL, arXiv 2006.07733) to 0.3 (SimCLR, arXiv 2002.05709) per 256 images, to batch 4096")
_NOVOGRAD = Lr(1e-4, 1e-2, _AROUND_DEFAULT)
_ADAFACTOR = Lr(1e-3, 1e-2, "1e-3 in fine-tuning to 1e-2 in pre-training T5, arXiv 1910.10683")
_ADAFACTORBV = Lr(6e-5, 1e-3, f"made to take Adam's, arXiv 2106.04560: {_ADAM_SOURCE}")
_LION = Lr(6e-6, 3e-4, f"3 to 10 times below AdamW's, section 5 of the paper: {_ADAM_SOURCE}")
_MADGRAD = Lr(
    2.5e-4,
    2.5e-2,
    "best values in its repository: 2.5e-4 (CIFAR-10), 1e-3 (ImageNet), 5e-3 (RoBERTa), 2.5e-2 (IWSLT14)",
)
_KRON = Lr(2e-5, 1e-3, "about 3 times below Adam's in the repository kron_torch, up to timm's default")
_MUON = Lr(
    2e-4, 2e-2, "AdamW's for match_rms_adamw (arXiv 2502.16982) to 2e-2 for the original scale (arXiv 2411.10438)"
)
_RMSPROP = Lr(1e-3, 1e-1, _AROUND_DEFAULT)
_RMSPROPTF = Lr(0.016, 0.256, "0.016 for every 256 images, 0.256 at batch 4096, for EfficientNet, arXiv 1905.11946")
_ADADELTA = Lr(1e-1, 10.0, _AROUND_DEFAULT)
_SOAP = Lr(3e-4, 3e-2, "3e-3 in its repository, and up to a factor of ten on either side")
_SHAMPOO = Lr(6e-5, 1e-3, f"as Adam's, whose step length it takes: {_ADAM_SOURCE}")
_NORMUON = Lr(2e-4, 2e-2, "as Muon's")
_SCION = Lr(2**-12, 2**-4, "2**-12 (nanoGPT) to 2**-4 (CIFAR-10) in its repository")
_SCHEDULEFREEADAMW = Lr(6e-5, 1e-2, f"1 to 10 times AdamW's, in its repository: {_ADAM_SOURCE}")
_SCHEDULEFREESGD = Lr(1.0, 5.0, "10 to 50 times SGD's, in its repository: 0.1 for 256 images")
_PRODIGY = Lr(0.5, 2.0, "1 in the paper: it multiplies the estimate")
_CAME = Lr(2e-5, 2e-3, "2e-4 in its repository, and up to a factor of ten on either side")


def all_names() -> Iterator[OptimInfo]:
    """Every name but the aliases."""
    yield from _TABLE


def _row(
    name: str, class_name: str, takes: str, paper: Paper, lr: Lr | None, description: str, **defaults: Any
) -> OptimInfo:
    """One name.

    Args:
        name: of the catalogue.
        class_name: in descend.optimizers, or the dotted path of another package's class.
        takes: the options, in words: eps, momentum, betas (betas3: three of them), no_decay, second_order.
        paper: the publication.
        lr: where to look for a learning rate first; None: nobody says.
        description: one line.
        **defaults: options that the name binds.
    """
    words = takes.split()
    return OptimInfo(
        name,
        class_name if "." in class_name else f"descend.optimizers.{class_name}",
        description,
        has_eps="eps" in words,
        has_momentum="momentum" in words,
        has_betas="betas" in words or "betas3" in words,
        num_betas=3 if "betas3" in words else 2,
        second_order="second_order" in words,
        defaults=defaults or None,
        paper=paper,
        suggested_lr=lr and (lr.low, lr.high),
        lr_source=lr.source if lr else "",
        has_weight_decay="no_decay" not in words,
    )


# fmt: off
_TABLE = (
    # SGD
    _row("sgd", "SGD", "momentum", papers.NESTEROV, _SGD,
         "Stochastic gradient descent with Nesterov momentum", nesterov=True),
    _row("momentum", "SGD", "momentum", papers.HEAVY_BALL, _SGD,
         "Stochastic gradient descent with heavy-ball momentum", nesterov=False),
    _row("sgdw", "SGDW", "momentum", papers.DECOUPLED_DECAY, _SGD,
         "SGD with Nesterov momentum and decoupled weight decay", nesterov=True),
    _row("csgdw", "SGDW", "momentum", papers.CAUTIOUS, _SGD,
         "SGD with Nesterov momentum and decoupled weight decay; cautious", nesterov=True, caution=True),
    _row("sgdc", "SGDW", "momentum", papers.CORRECTED_DECAY, _SGD,
         "SGD with Nesterov momentum and decoupled weight decay; decay corrected by lr / max lr", nesterov=True, corrected_weight_decay=True),
    _row("csgdc", "SGDW", "momentum", papers.CORRECTED_DECAY, _SGD,
         "SGD with Nesterov momentum and decoupled weight decay; cautious; decay corrected by lr / max lr", nesterov=True, caution=True, corrected_weight_decay=True),
    _row("sgdp", "SGDP", "eps momentum", papers.ADAMP, _SGD,
         "SGD whose step on scale-invariant weights stays on their sphere", nesterov=True),
    _row("csgdp", "SGDP", "eps momentum", papers.CAUTIOUS, _SGD,
         "SGD whose step on scale-invariant weights stays on their sphere; cautious", nesterov=True, caution=True),
    # Adam and its relatives
    _row("radam", "RAdam", "eps betas", papers.RADAM, _LIKE_ADAM,
         "Adam with a rectified start, weight decay in the gradient", decoupled_weight_decay=False),
    _row("radamw", "RAdam", "eps betas", papers.RADAM, _LIKE_ADAM,
         "Adam with a rectified start and decoupled weight decay", decoupled_weight_decay=True),
    _row("radamlegacy", "RAdam", "eps betas", papers.RADAM, _LIKE_ADAM,
         "RAdam as timm had it, with decoupled weight decay"),
    _row("adam", "Adam", "eps betas", papers.ADAM, _ADAM,
         "Adaptive moment estimation, weight decay in the gradient"),
    _row("adamw", "AdamW", "eps betas", papers.DECOUPLED_DECAY, _LIKE_ADAM,
         "Adam with decoupled weight decay"),
    _row("adamwlegacy", "AdamW", "eps betas", papers.DECOUPLED_DECAY, _LIKE_ADAM,
         "AdamW under timm's older name"),
    _row("cadamw", "AdamW", "eps betas", papers.CAUTIOUS, _LIKE_ADAM,
         "Adam with decoupled weight decay; cautious", caution=True),
    _row("adamc", "AdamW", "eps betas", papers.CORRECTED_DECAY, _LIKE_ADAM,
         "Adam with decoupled weight decay; decay corrected by lr / max lr", corrected_weight_decay=True),
    _row("cadamc", "AdamW", "eps betas", papers.CORRECTED_DECAY, _LIKE_ADAM,
         "Adam with decoupled weight decay; cautious; decay corrected by lr / max lr", caution=True, corrected_weight_decay=True),
    _row("nadam", "NAdam", "eps betas", papers.NADAM, _LIKE_ADAM,
         "Adam with Nesterov momentum on a schedule"),
    _row("nadamlegacy", "Nadam", "eps betas", papers.NADAM, _LIKE_ADAM,
         "NAdam as timm had it"),
    _row("nadamw", "NAdamW", "eps betas", papers.ALGOPERF, _NADAMW,
         "AdamW with Nesterov's look ahead in the first moment"),
    _row("cnadamw", "NAdamW", "eps betas", papers.CAUTIOUS, _NADAMW,
         "AdamW with Nesterov's look ahead in the first moment; cautious", caution=True),
    _row("nadamc", "NAdamW", "eps betas", papers.CORRECTED_DECAY, _NADAMW,
         "AdamW with Nesterov's look ahead in the first moment; decay corrected by lr / max lr", corrected_weight_decay=True),
    _row("cnadamc", "NAdamW", "eps betas", papers.CORRECTED_DECAY, _NADAMW,
         "AdamW with Nesterov's look ahead in the first moment; cautious; decay corrected by lr / max lr", caution=True, corrected_weight_decay=True),
    _row("adamax", "Adamax", "eps betas", papers.ADAM, _ADAMAX,
         "Adam with the largest gradient instead of the second moment"),
    _row("adamp", "AdamP", "eps betas", papers.ADAMP, _LIKE_ADAM,
         "Adam whose step on scale-invariant weights stays on their sphere", wd_ratio=0.01, nesterov=True),
    _row("cadamp", "AdamP", "eps betas", papers.CAUTIOUS, _LIKE_ADAM,
         "Adam whose step on scale-invariant weights stays on their sphere; cautious", wd_ratio=0.01, nesterov=True, caution=True),
    _row("adabelief", "AdaBelief", "eps betas", papers.ADABELIEF, _ADABELIEF,
         "Adam with the variance of the gradient's error", rectify=False),
    _row("radabelief", "AdaBelief", "eps betas", papers.ADABELIEF, _ADABELIEF,
         "AdaBelief with a rectified start", rectify=True),
    _row("adopt", "Adopt", "eps betas", papers.ADOPT, _LIKE_ADAM,
         "Adam that normalises before it averages"),
    _row("adoptw", "Adopt", "eps betas", papers.ADOPT, _LIKE_ADAM,
         "ADOPT with decoupled weight decay", decoupled=True),
    _row("adoptc", "Adopt", "eps betas", papers.CORRECTED_DECAY, _LIKE_ADAM,
         "ADOPT with decoupled weight decay; decay corrected by lr / max lr", decoupled=True, corrected_weight_decay=True),
    _row("cadopt", "Adopt", "eps betas", papers.CAUTIOUS, _LIKE_ADAM,
         "Adam that normalises before it averages; cautious", caution=True),
    _row("cadoptw", "Adopt", "eps betas", papers.CAUTIOUS, _LIKE_ADAM,
         "ADOPT with decoupled weight decay; cautious", decoupled=True, caution=True),
    _row("cadoptc", "Adopt", "eps betas", papers.CORRECTED_DECAY, _LIKE_ADAM,
         "ADOPT with decoupled weight decay; cautious; decay corrected by lr / max lr", decoupled=True, caution=True, corrected_weight_decay=True),
    _row("laprop", "LaProp", "eps betas", papers.LAPROP, _LAPROP,
         "Adam with momentum of the normalised gradient"),
    _row("claprop", "LaProp", "eps betas", papers.CAUTIOUS, _LAPROP,
         "Adam with momentum of the normalised gradient; cautious", caution=True),
    _row("lapropc", "LaProp", "eps betas", papers.CORRECTED_DECAY, _LAPROP,
         "Adam with momentum of the normalised gradient; decay corrected by lr / max lr", corrected_weight_decay=True),
    _row("mars", "Mars", "eps betas", papers.MARS, _MARS,
         "AdamW on a gradient of reduced variance"),
    _row("cmars", "Mars", "eps betas", papers.CAUTIOUS, _MARS,
         "AdamW on a gradient of reduced variance; cautious", caution=True),
    _row("adan", "Adan", "eps betas3", papers.ADAN, _ADAN,
         "Nesterov momentum from differences of gradients, proximal weight decay", no_prox=False),
    _row("adanw", "Adan", "eps betas3", papers.ADAN, _ADAN,
         "Adan with the weight decay of AdamW", no_prox=True),
    _row("cadan", "Adan", "eps betas3", papers.CAUTIOUS, _ADAN,
         "Nesterov momentum from differences of gradients, proximal weight decay; cautious", no_prox=False, caution=True),
    _row("cadanw", "Adan", "eps betas3", papers.CAUTIOUS, _ADAN,
         "Adan with the weight decay of AdamW; cautious", no_prox=True, caution=True),
    _row("adahessian", "Adahessian", "eps betas second_order", papers.ADAHESSIAN, _ADAHESSIAN,
         "Adam with a probe of the Hessian's diagonal instead of the gradient"),
    # a norm for every layer
    _row("lamb", "Lamb", "eps betas", papers.LAMB, _LAMB,
         "Adam with a trust ratio for every tensor"),
    _row("lambc", "Lamb", "eps betas", papers.LAMB, _LAMB,
         "LAMB with trust ratios of at most 1", trust_clip=True),
    _row("lambw", "Lamb", "eps betas", papers.LAMB, _LAMB,
         "LAMB with decoupled weight decay", decoupled_decay=True),
    _row("lambcw", "Lamb", "eps betas", papers.LAMB, _LAMB,
         "LAMB with decoupled weight decay and trust ratios of at most 1", decoupled_decay=True, trust_clip=True),
    _row("lambcd", "Lamb", "eps betas", papers.CORRECTED_DECAY, _LAMB,
         "LAMB with decoupled weight decay; decay corrected by lr / max lr", decoupled_decay=True, corrected_weight_decay=True),
    _row("clamb", "Lamb", "eps betas", papers.CAUTIOUS, _LAMB,
         "Adam with a trust ratio for every tensor; cautious", caution=True),
    _row("clambw", "Lamb", "eps betas", papers.CAUTIOUS, _LAMB,
         "LAMB with decoupled weight decay; cautious", decoupled_decay=True, caution=True),
    _row("lars", "Lars", "eps momentum", papers.LARS, _LARS,
         "SGD with a trust ratio for every tensor"),
    _row("larc", "Lars", "eps momentum", papers.LARS, _LARS,
         "LARS with trust ratios of at most 1", trust_clip=True),
    _row("nlars", "Lars", "eps momentum", papers.LARS, _LARS,
         "LARS with Nesterov momentum", nesterov=True),
    _row("nlarc", "Lars", "eps momentum", papers.LARS, _LARS,
         "LARS with Nesterov momentum and trust ratios of at most 1", nesterov=True, trust_clip=True),
    _row("novograd", "NvNovoGrad", "eps betas", papers.NOVOGRAD, _NOVOGRAD,
         "Momentum of gradients that are normalised tensor by tensor"),
    _row("novogradw", "NvNovoGrad", "eps betas", papers.NOVOGRAD, _NOVOGRAD,
         "NovoGrad with decoupled weight decay", decoupled_decay=True),
    _row("novogradc", "NvNovoGrad", "eps betas", papers.CORRECTED_DECAY, _NOVOGRAD,
         "NovoGrad with decoupled weight decay; decay corrected by lr / max lr", decoupled_decay=True, corrected_weight_decay=True),
    # factored second moments
    _row("adafactor", "Adafactor", "eps betas", papers.ADAFACTOR, _ADAFACTOR,
         "Adam with the second moment kept as row and column means"),
    _row("cadafactor", "Adafactor", "eps betas", papers.CAUTIOUS, _ADAFACTOR,
         "Adam with the second moment kept as row and column means; cautious", caution=True, betas=(0.9, 0.999)),
    _row("adafactorbv", "AdafactorBigVision", "eps momentum", papers.SCALING_VIT, _ADAFACTORBV,
         "Adafactor as Big Vision trains ViTs, with momentum in bfloat16"),
    _row("cadafactorbv", "AdafactorBigVision", "eps momentum", papers.CAUTIOUS, _ADAFACTORBV,
         "Adafactor as Big Vision trains ViTs, with momentum in bfloat16; cautious", caution=True),
    _row("adafactorbvc", "AdafactorBigVision", "eps momentum", papers.CORRECTED_DECAY, _ADAFACTORBV,
         "Adafactor as Big Vision trains ViTs, with momentum in bfloat16; decay corrected by lr / max lr", corrected_weight_decay=True),
    _row("cadafactorbvc", "AdafactorBigVision", "eps momentum", papers.CORRECTED_DECAY, _ADAFACTORBV,
         "Adafactor as Big Vision trains ViTs, with momentum in bfloat16; cautious; decay corrected by lr / max lr", caution=True, corrected_weight_decay=True),
    # signs and averages
    _row("lion", "Lion", "betas", papers.LION, _LION,
         "The sign of an interpolated momentum"),
    _row("clion", "Lion", "betas", papers.CAUTIOUS, _LION,
         "The sign of an interpolated momentum; cautious", caution=True),
    _row("lionc", "Lion", "betas", papers.CORRECTED_DECAY, _LION,
         "The sign of an interpolated momentum; decay corrected by lr / max lr", corrected_weight_decay=True),
    _row("clionc", "Lion", "betas", papers.CORRECTED_DECAY, _LION,
         "The sign of an interpolated momentum; cautious; decay corrected by lr / max lr", caution=True, corrected_weight_decay=True),
    _row("madgrad", "MADGRAD", "eps momentum", papers.MADGRAD, _MADGRAD,
         "Dual averaging with the cube root of summed squares"),
    _row("madgradw", "MADGRAD", "eps momentum", papers.MADGRAD, _MADGRAD,
         "MADGRAD with decoupled weight decay", decoupled_decay=True),
    # matrices
    _row("kron", "Kron", "momentum", papers.PSGD, _KRON,
         "PSGD: a Kronecker-factored preconditioner learned on a Lie group"),
    _row("kronw", "Kron", "momentum", papers.PSGD, _KRON,
         "PSGD Kron with decoupled weight decay", decoupled_decay=True),
    _row("kronc", "Kron", "momentum", papers.CORRECTED_DECAY, _KRON,
         "PSGD Kron with decoupled weight decay; decay corrected by lr / max lr", decoupled_decay=True, corrected_weight_decay=True),
    _row("muon", "Muon", "eps momentum betas", papers.MUON, _MUON,
         "Momentum of matrices, orthogonalised; AdamW for everything else"),
    _row("nmuon", "Muon", "eps momentum betas", papers.MUON, _MUON,
         "Muon with Nesterov momentum; NAdamW for everything else", nesterov=True),
    _row("adamuon", "Muon", "eps momentum betas", papers.ADAMUON, _MUON,
         "Muon with a second moment of the orthogonalised step", algo="adamuon"),
    _row("nadamuon", "Muon", "eps momentum betas", papers.ADAMUON, _MUON,
         "AdaMuon with Nesterov momentum; NAdamW for everything else", algo="adamuon", nesterov=True),
    # accumulated squares
    _row("rmsprop", "RMSprop", "eps momentum", papers.RMSPROP, _RMSPROP,
         "The gradient over its root mean square", alpha=0.9),
    _row("rmsproptf", "RMSpropTF", "eps momentum", papers.RMSPROP, _RMSPROPTF,
         "RMSprop as TensorFlow computes it: epsilon under the root, mean squares from 1", alpha=0.9),
    _row("rmsproptfw", "RMSpropTF", "eps momentum", papers.RMSPROP, _RMSPROPTF,
         "TensorFlow's RMSprop with decoupled weight decay", alpha=0.9, decoupled_decay=True),
    _row("rmsproptfc", "RMSpropTF", "eps momentum", papers.CORRECTED_DECAY, _RMSPROPTF,
         "TensorFlow's RMSprop with decoupled weight decay; decay corrected by lr / max lr", alpha=0.9, decoupled_decay=True, corrected_weight_decay=True),
    _row("crmsproptf", "RMSpropTF", "eps momentum", papers.CAUTIOUS, _RMSPROPTF,
         "RMSprop as TensorFlow computes it: epsilon under the root, mean squares from 1; cautious", alpha=0.9, caution=True),
    _row("adadelta", "Adadelta", "eps", papers.ADADELTA, _ADADELTA,
         "RMSprop in the units of the parameter, from a second mean of squared steps"),
    _row("adagrad", "Adagrad", "eps", papers.ADAGRAD, _RMSPROP,
         "The gradient over the root of its summed squares", eps=1e-8),
    # NVIDIA's apex, imported when used
    _row("fusedsgd", "apex.optimizers.FusedSGD", "momentum", papers.NESTEROV, _SGD,
         "apex: SGD with Nesterov momentum in one CUDA kernel", nesterov=True),
    _row("fusedadam", "apex.optimizers.FusedAdam", "eps betas", papers.ADAM, _ADAM,
         "apex: Adam in one CUDA kernel", adam_w_mode=False),
    _row("fusedadamw", "apex.optimizers.FusedAdam", "eps betas", papers.DECOUPLED_DECAY, _ADAM,
         "apex: AdamW in one CUDA kernel", adam_w_mode=True),
    _row("fusedlamb", "apex.optimizers.FusedLAMB", "eps betas", papers.LAMB, None,
         "apex: LAMB in few CUDA kernels"),
    _row("fusednovograd", "apex.optimizers.FusedNovoGrad", "eps betas", papers.NOVOGRAD, None,
         "apex: NovoGrad in few CUDA kernels", betas=(0.95, 0.98)),
    # bitsandbytes, imported when used
    _row("bnbsgd", "bitsandbytes.optim.SGD", "momentum", papers.EIGHT_BIT, None,
         "bitsandbytes: SGD with 32-bit state", nesterov=True),
    _row("bnbsgd8bit", "bitsandbytes.optim.SGD8bit", "momentum", papers.EIGHT_BIT, None,
         "bitsandbytes: SGD with 8-bit state", nesterov=True),
    _row("bnbadam", "bitsandbytes.optim.Adam", "eps betas", papers.EIGHT_BIT, None,
         "bitsandbytes: Adam with 32-bit state"),
    _row("bnbadam8bit", "bitsandbytes.optim.Adam8bit", "eps betas", papers.EIGHT_BIT, None,
         "bitsandbytes: Adam with 8-bit state"),
    _row("bnbadamw", "bitsandbytes.optim.AdamW", "eps betas", papers.EIGHT_BIT, None,
         "bitsandbytes: AdamW with 32-bit state"),
    _row("bnbadamw8bit", "bitsandbytes.optim.AdamW8bit", "eps betas", papers.EIGHT_BIT, None,
         "bitsandbytes: AdamW with 8-bit state"),
    _row("bnblion", "bitsandbytes.optim.Lion", "betas", papers.EIGHT_BIT, None,
         "bitsandbytes: Lion with 32-bit state"),
    _row("bnblion8bit", "bitsandbytes.optim.Lion8bit", "betas", papers.EIGHT_BIT, None,
         "bitsandbytes: Lion with 8-bit state"),
    _row("bnbademamix", "bitsandbytes.optim.AdEMAMix", "eps betas3", papers.EIGHT_BIT, None,
         "bitsandbytes: AdEMAMix with 32-bit state"),
    _row("bnbademamix8bit", "bitsandbytes.optim.AdEMAMix8bit", "eps betas3", papers.EIGHT_BIT, None,
         "bitsandbytes: AdEMAMix with 8-bit state"),
    # torch's that timm does not name
    _row("asgd", "ASGD", "", papers.ACCELERATION_BY_AVERAGING, _RMSPROP,
         "SGD that also averages its iterates"),
    _row("rprop", "Rprop", "no_decay", papers.RPROP, _RMSPROP,
         "A step size for every weight, from the sign of its gradient; for full batches"),
    _row("torchadafactor", "TorchAdafactor", "eps", papers.ADAFACTOR, _RMSPROP,
         "Adafactor as torch has it"),
    # the frontier
    _row("soap", "SOAP", "eps betas", papers.SOAP, _SOAP,
         "Adam in the eigenbasis of Shampoo's preconditioner"),
    _row("klsoap", "KLSOAP", "eps betas", papers.KL_SHAMPOO, _SOAP,
         "SOAP with the preconditioner that is nearest in Kullback-Leibler divergence"),
    _row("shampoo", "Shampoo", "eps betas", papers.SHAMPOO, _SHAMPOO,
         "Kronecker-factored preconditioner in blocks, with the length of Adam's step"),
    _row("normuon", "NorMuon", "eps momentum betas", papers.NORMUON, _NORMUON,
         "Muon with rows of the orthogonalised step brought to one size"),
    _row("dion", "Dion", "eps betas", papers.DION, _NORMUON,
         "Orthonormalised momentum of low rank, with error feedback"),
    _row("scion", "Scion", "eps momentum no_decay", papers.SCION, _SCION,
         "Steps to the edge of a norm ball that fits each kind of layer"),
    _row("schedulefreeadamw", "ScheduleFreeAdamW", "eps betas", papers.SCHEDULE_FREE, _SCHEDULEFREEADAMW,
         "AdamW that averages its iterates instead of following a schedule"),
    _row("schedulefreeradam", "ScheduleFreeRAdam", "eps betas", papers.SCHEDULE_FREE, _SCHEDULEFREEADAMW,
         "Schedule-free AdamW with a rectified start instead of a warm-up"),
    _row("schedulefreesgd", "ScheduleFreeSGD", "momentum", papers.SCHEDULE_FREE, _SCHEDULEFREESGD,
         "SGD that averages its iterates instead of following a schedule"),
    _row("prodigy", "Prodigy", "eps betas", papers.PRODIGY, _PRODIGY,
         "Adam that estimates its own learning rate"),
    _row("ademamix", "AdEMAMix", "eps betas3", papers.ADEMAMIX, _LIKE_ADAM,
         "AdamW with a second, much slower momentum"),
    _row("stableadamw", "StableAdamW", "eps betas", papers.STABLE_ADAMW, _LIKE_ADAM,
         "AdamW whose learning rate falls where the second moment is out of date"),
    _row("adammini", "AdamMini", "eps betas", papers.ADAM_MINI, _LIKE_ADAM,
         "AdamW with one second moment for each block of weights"),
    _row("came", "CAME", "eps betas3", papers.CAME, _CAME,
         "Adafactor that trusts its step where it was stable"),
)
# fmt: on
