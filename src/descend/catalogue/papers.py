"""The publications that the catalogue refers to."""

from __future__ import annotations

from descend.catalogue.info import Paper


def _arxiv(number: str, title: str, authors: str) -> Paper:
    return Paper(title, authors, 2000 + int(number[:2]), f"https://arxiv.org/abs/{number}")


ACCELERATION_BY_AVERAGING = Paper(
    "Acceleration of Stochastic Approximation by Averaging", "Polyak, Juditsky", 1992, "https://doi.org/10.1137/0330046"
)
ADABELIEF = _arxiv(
    "2010.07468", "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", "Zhuang et al."
)
ADADELTA = _arxiv("1212.5701", "ADADELTA: An Adaptive Learning Rate Method", "Zeiler")
ADAFACTOR = _arxiv("1804.04235", "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", "Shazeer, Stern")
ADAGRAD = Paper(
    "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
    "Duchi, Hazan, Singer",
    2011,
    "https://jmlr.org/papers/v12/duchi11a.html",
)
ADAHESSIAN = _arxiv("2006.00719", "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning", "Yao et al.")
ADAM = _arxiv("1412.6980", "Adam: A Method for Stochastic Optimization", "Kingma, Ba")
ADAM_MINI = _arxiv("2406.16793", "Adam-mini: Use Fewer Learning Rates To Gain More", "Zhang et al.")
ADAMP = _arxiv(
    "2006.08217", "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", "Heo et al."
)
ADAMUON = _arxiv("2507.11005", "AdaMuon: Adaptive Muon Optimizer", "Si et al.")
ADAN = _arxiv(
    "2208.06677", "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", "Xie et al."
)
ADEMAMIX = _arxiv("2409.03137", "The AdEMAMix Optimizer: Better, Faster, Older", "Pagliardini et al.")
ADOPT = _arxiv("2411.02853", "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate", "Taniguchi et al.")
ALGOPERF = _arxiv("2306.07179", "Benchmarking Neural Network Training Algorithms", "Dahl et al.")
CAME = _arxiv("2307.02047", "CAME: Confidence-guided Adaptive Memory Efficient Optimization", "Luo et al.")
CAUTIOUS = _arxiv("2411.16085", "Cautious Optimizers: Improving Training with One Line of Code", "Liang et al.")
CORRECTED_DECAY = _arxiv("2506.02285", "Why Gradients Rapidly Increase Near the End of Training", "Defazio")
DECOUPLED_DECAY = _arxiv("1711.05101", "Decoupled Weight Decay Regularization", "Loshchilov, Hutter")
DION = _arxiv("2504.05295", "Dion: Distributed Orthonormalized Updates", "Ahn et al.")
EIGHT_BIT = _arxiv("2110.02861", "8-bit Optimizers via Block-wise Quantization", "Dettmers et al.")
HEAVY_BALL = Paper(
    "Some methods of speeding up the convergence of iteration methods",
    "Polyak",
    1964,
    "https://doi.org/10.1016/0041-5553(64)90137-5",
)
KL_SHAMPOO = _arxiv(
    "2509.03378", "Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization", "Lin et al."
)
LAMB = _arxiv("1904.00962", "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", "You et al.")
LAPROP = _arxiv("2002.04839", "LaProp: Separating Momentum and Adaptivity in Adam", "Ziyin et al.")
LARS = _arxiv("1708.03888", "Large Batch Training of Convolutional Networks", "You, Gitman, Ginsburg")
LION = _arxiv("2302.06675", "Symbolic Discovery of Optimization Algorithms", "Chen et al.")
MADGRAD = _arxiv(
    "2101.11075",
    "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic "
    "Optimization",
    "Defazio, Jelassi",
)
MARS = _arxiv("2411.10438", "MARS: Unleashing the Power of Variance Reduction for Training Large Models", "Yuan et al.")
MUON = Paper(
    "Muon: An optimizer for hidden layers in neural networks",
    "Jordan et al.",
    2024,
    "https://kellerjordan.github.io/posts/muon/",
)
NADAM = Paper(
    "Incorporating Nesterov Momentum into Adam", "Dozat", 2016, "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ"
)
NESTEROV = Paper(
    "On the importance of initialization and momentum in deep learning",
    "Sutskever et al.",
    2013,
    "https://proceedings.mlr.press/v28/sutskever13.html",
)
NORMUON = _arxiv("2510.05491", "NorMuon: Making Muon more efficient and scalable", "Li et al.")
NOVOGRAD = _arxiv(
    "1905.11286",
    "Training Deep Networks with Stochastic Gradient Normalized by Layerwise Adaptive Second Moments",
    "Ginsburg et al.",
)
PRODIGY = _arxiv("2306.06101", "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", "Mishchenko, Defazio")
PSGD = _arxiv("2402.04553", "Curvature-Informed SGD via General Purpose Lie-Group Preconditioners", "Pooladzandi, Li")
RADAM = _arxiv("1908.03265", "On the Variance of the Adaptive Learning Rate and Beyond", "Liu et al.")
RMSPROP = Paper(
    "Neural Networks for Machine Learning, lecture 6",
    "Hinton, Srivastava, Swersky",
    2012,
    "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
)
RPROP = Paper(
    "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm",
    "Riedmiller, Braun",
    1993,
    "https://doi.org/10.1109/ICNN.1993.298623",
)
SCALING_VIT = _arxiv("2106.04560", "Scaling Vision Transformers", "Zhai et al.")
SCHEDULE_FREE = _arxiv("2405.15682", "The Road Less Scheduled", "Defazio et al.")
SCION = _arxiv("2502.07529", "Training Deep Learning Models with Norm-Constrained LMOs", "Pethick et al.")
SHAMPOO = _arxiv(
    "2309.06497",
    "A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer for Training Neural "
    "Networks At-Scale",
    "Shi et al.",
)
SOAP = _arxiv("2409.11321", "SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas et al.")
STABLE_ADAMW = _arxiv(
    "2304.13013", "Stable and low-precision training for large-scale vision-language models", "Wortsman et al."
)
