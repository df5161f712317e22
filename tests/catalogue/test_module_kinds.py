"""What a model's modules say: who moves what under Muon, and which layers there are, on models made as others make theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.catalogue import create_optimizer_v2, muon_param_groups, param_groups_layer_decay, param_groups_table
from descend.catalogue.modules import layers_of_blocks, output_layers, owner_of, parameters_of

D = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.attn = nn.Linear(D, 3 * D)
        self.fc = nn.Linear(D, D)


class Decoder(nn.Module):
    """As a causal language model of transformers: trunk and head, the head given by a method."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(32, D)
        self.model.layers = nn.ModuleList(Block() for _ in range(3))
        self.model.norm = nn.LayerNorm(D)
        self.lm_head = nn.Linear(D, 32, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class Classifier(nn.Module):
    """As BERT with a classifier, which get_output_embeddings() does not give."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.Module()
        self.bert.embeddings.word_embeddings = nn.Embedding(32, D)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(Block() for _ in range(3))
        self.bert.pooler = nn.Module()
        self.bert.pooler.dense = nn.Linear(D, D)
        self.classifier = nn.Linear(D, 4)

    def get_output_embeddings(self) -> None:
        return None


class EncoderDecoder(nn.Module):
    """As T5: two lists of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(32, D)
        for name in ("encoder", "decoder"):
            stack = nn.Module()
            stack.block = nn.ModuleList(Block() for _ in range(2))
            stack.final_layer_norm = nn.LayerNorm(D)
            setattr(self, name, stack)
        self.lm_head = nn.Linear(D, 32, bias=False)


class Vision(nn.Module):
    """As a vision transformer: patches, positions, a pooler, the head given by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, D, 4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(16, D))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.pooler = nn.Linear(D, D)
        self.last = nn.Linear(D, 4)

    def get_classifier(self) -> nn.Module:
        return self.last


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(4, 2 * D, D))
        self.gate_up_proj_bias = nn.Parameter(torch.ones(4, 2 * D))
        self.down_proj = nn.Parameter(torch.ones(4, D, D))


class Mixture(nn.Module):
    """As a mixture of experts with stacked matrices."""

    def __init__(self, gate: str = "gate") -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, D)
        self.layers = nn.ModuleList()
        for _ in range(2):
            layer = nn.Module()
            layer.mlp = nn.Module()
            layer.mlp.add_module(gate, nn.Linear(D, 4, bias=False))
            layer.mlp.experts = Experts()
            layer.attn = nn.Linear(D, D, bias=False)
            self.layers.append(layer)
        self.conv = nn.Conv1d(D, D, 3, bias=False)
        self.lm_head = nn.Linear(D, 32, bias=False)


class Peft(nn.Module):
    """As PeftModel, which passes what it lacks on to the model inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)


def by_rule(optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    rows = param_groups_table(optimizer)
    return {rule: {row.name for row in rows if row.rule == rule} for rule in {row.rule for row in rows}}


def matrices(model: nn.Module, but: tuple[str, ...] = ()) -> set[str]:
    """The names of everything of two and more dimensions, apart from those with one of these words in them."""
    return {n for n, p in model.named_parameters() if p.dim() > 1 and not any(word in n for word in but)}


# -------------------------------------------------------------------------------- Muon from the plain factory


@pytest.mark.parametrize("name", ("muon", "nmuon", "adamuon", "normuon", "dion"))
@pytest.mark.parametrize(
    "make, outside",
    (
        (Decoder, ("embed_tokens", "lm_head")),
        (lambda: Decoder(tied=True), ("embed_tokens",)),
        (Classifier, ("word_embeddings", "classifier")),
        (EncoderDecoder, ("shared", "lm_head")),
        (Vision, ("pos_embed", "last")),
        (lambda: Peft(Decoder()), ("embed_tokens", "lm_head")),
        (lambda: nn.DataParallel(Decoder()), ("embed_tokens", "lm_head")),
    ),
    ids=("decoder", "tied", "classifier", "encoder and decoder", "vision", "peft", "wrapped"),
)
def test_embeddings_and_the_head_are_not_orthogonalised(
    name: str, make: Callable[[], nn.Module], outside: tuple[str, ...]
) -> None:
    model = make()
    optimizer = create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.1)
    rule = {"muon": "Muon", "nmuon": "Muon", "normuon": "NorMuon", "dion": "Dion"}.get(name, "AdaMuon")
    found = {n.removeprefix("module.") for n in matrices(model, outside)}
    if name == "dion":  # takes no convolutions
        found -= {"patch_embed.proj.weight"}
    assert by_rule(optimizer)[rule] == found
    for group in optimizer.param_groups:
        for n, p in zip(group["param_names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.1 if p.dim() > 1 else 0.0), n


def test_timms_way_is_an_argument() -> None:
    model = Decoder()
    optimizer = create_optimizer_v2(model, "muon", lr=1e-3, weight_decay=0.1, fallback_kinds=())
    assert by_rule(optimizer)["Muon"] == matrices(model)
    assert len(optimizer.param_groups) == 2
    some = create_optimizer_v2(model, "muon", lr=1e-3, fallback_kinds="embedding", fallback_list=["*attn*"])
    assert by_rule(some)["Muon"] == matrices(model, ("embed_tokens", "attn"))
    with pytest.raises(ValueError, match="fallback_kinds has 'embeding' .did you mean 'embedding'"):
        create_optimizer_v2(model, "muon", lr=1e-3, fallback_kinds="embeding")
    with pytest.raises(ValueError, match="fallback_kinds='embedding'.*pass the nn.Module"):
        create_optimizer_v2(model.parameters(), "muon", lr=1e-3, fallback_kinds="embedding")


@pytest.mark.parametrize("layer_decay", (None, 0.5))
def test_models_without_embeddings_and_head_are_grouped_as_in_timm(layer_decay: float | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, D, 3), nn.Sequential(nn.Linear(D, D), nn.Linear(D, D)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, theirs = (
            create_optimizer_v2(model, "muon", lr=1e-3, weight_decay=0.1, layer_decay=layer_decay, **more).param_groups
            for more in ({}, {"fallback_kinds": ()})
        )
    assert str(mine) == str(theirs)


def test_other_optimizers_groups_are_untouched() -> None:
    for name in ("adamw", "soap", "lamb"):
        assert all("use_fallback" not in g for g in create_optimizer_v2(Decoder(), name, lr=1e-3).param_groups)


def test_layers_and_kinds_go_together() -> None:
    optimizer = create_optimizer_v2(Decoder(), "muon", lr=1.0, layer_decay=0.5)
    table = {row.name: row for row in param_groups_table(optimizer)}
    assert (table["lm_head.weight"].rule, table["lm_head.weight"].lr) == ("AdamW", 1.0)
    assert (table["model.layers.2.fc.weight"].rule, table["model.layers.2.fc.weight"].lr) == ("Muon", 0.5)
    assert (table["model.embed_tokens.weight"].rule, table["model.embed_tokens.weight"].lr) == ("AdamW", 0.0625)


@pytest.mark.parametrize(
    "path, is_head",
    (
        ("head", True),
        ("fc", True),
        ("classifier.1", True),
        ("blocks.1.fc", False),
        ("blocks.1.output", False),
        ("proj", False),
    ),
)
def test_a_last_linear_layer_is_the_head_by_its_name_only(path: str, is_head: bool) -> None:
    model = nn.Module()
    parent: nn.Module = model
    *parents, last = path.split(".")
    for part in parents:
        parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module("0", nn.Linear(D, D))
    parent.add_module(last, nn.Linear(D, 4))
    assert bool(output_layers(model)) == is_head


def test_a_model_that_says_it_has_no_head_has_none() -> None:
    class Trunk(Vision):
        def get_classifier(self) -> nn.Module:
            return nn.Identity()

    assert parameters_of(Trunk(), "head", "kinds") == frozenset()


def test_the_factory_speaks_the_protocol_of_transformers() -> None:
    kind, options = (lambda: create_optimizer_v2, {"opt": "muon", "lr": 1e-3})
    assert not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer))
    optimizer = kind()(Decoder(), **options)
    assert isinstance(optimizer, descend.Muon)


# -------------------------------------------------------------------------------- groups for Muon


def treated(model: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    groups = descend.muon_param_groups(model, **options)
    return {
        n: {k: v for k, v in g.items() if k not in ("params", "param_names")} for g in groups for n in g["param_names"]
    }


def test_what_reads_and_what_answers_falls_back() -> None:
    for model, outside in (
        (Vision(), ("patch_embed", "pos_embed", "pooler", "last")),
        (Classifier(), ("word_embeddings", "pooler", "classifier")),
        (Decoder(tied=True), ("embed_tokens",)),
        (EncoderDecoder(), ("shared", "lm_head")),
    ):
        hidden = {n for n, how in treated(model).items() if not how["use_fallback"]}
        assert hidden == matrices(model, outside)


@pytest.mark.parametrize("gate", ("gate", "router"))
def test_experts_are_stacked_and_their_router_falls_back(gate: str) -> None:
    model = Mixture(gate)
    how = treated(model, weight_decay=0.1)
    for i in range(2):
        assert how[f"layers.{i}.mlp.{gate}.weight"] == {"use_fallback": True, "weight_decay": 0.1}
        assert how[f"layers.{i}.mlp.experts.down_proj"] == {"use_fallback": False, "weight_decay": 0.1, "stacked": True}
        assert how[f"layers.{i}.mlp.experts.gate_up_proj_bias"] == {"use_fallback": True, "weight_decay": 0.0}
        assert how[f"layers.{i}.attn.weight"] == {"use_fallback": False, "weight_decay": 0.1}
    assert how["conv.weight"] == {"use_fallback": False, "weight_decay": 0.1}
    optimizer = descend.Muon(muon_param_groups(model), lr=0.1)
    moved = by_rule(optimizer)["Muon"]
    assert {f"layers.{i}.mlp.experts.{n}" for i in range(2) for n in ("gate_up_proj", "down_proj")} < moved
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def test_a_gate_without_experts_is_a_matrix() -> None:
    block = nn.Module()
    block.gate, block.up = nn.Linear(D, D), nn.Linear(D, D)
    model = nn.Sequential(block, nn.Linear(D, 4))
    assert treated(model)["0.gate.weight"] == {"use_fallback": False}


def test_narrow_factors_are_muons_by_a_switch() -> None:
    model = nn.Sequential(nn.Linear(2048, 8, bias=False), nn.Linear(8, 2048, bias=False), nn.Linear(8, 4, bias=False))
    for switch, rule in ((False, "AdamW"), (True, "Muon")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = descend.Muon(muon_param_groups(model, any_shape=switch), lr=1e-3)
        rules = {row.name: row.rule for row in param_groups_table(optimizer)}
        assert rules == {"0.weight": rule, "1.weight": rule, "2.weight": "AdamW"}


def test_a_head_by_name() -> None:
    how = treated(nn.Sequential(nn.Linear(D, D), nn.Linear(D, D)), head="0.*")
    assert [how[f"{i}.weight"]["use_fallback"] for i in range(2)] == [True, False]


# -------------------------------------------------------------------------------- layers


def scales(model: nn.Module, **options: Any) -> dict[str, float]:
    groups = param_groups_layer_decay(model, layer_decay=0.5, **options)
    return {name: group["lr_scale"] for group in groups for name in group["param_names"]}


@pytest.mark.parametrize(
    "make, expected",
    (
        (Decoder, {"model.embed_tokens": 0, "model.layers.0": 1, "model.layers.2": 3, "model.norm": 3, "lm_head": 4}),
        (Classifier, {"bert.embeddings": 0, "bert.encoder.layer.1": 2, "bert.pooler": 4, "classifier": 4}),
        (EncoderDecoder, {
            "shared": 0, "encoder.block.0": 1, "encoder.block.1": 2, "encoder.final_layer_norm": 2, "decoder.block.0": 3,
            "decoder.final_layer_norm": 4, "lm_head": 5,
        }),
        (Vision, {"pos_embed": 0, "patch_embed": 0, "blocks.0": 1, "blocks.2": 3, "pooler": 4, "last": 4}),
        (Mixture, {"embed_tokens": 0, "layers.0": 1, "layers.1": 2, "lm_head": 3}),
    ),
    ids=("decoder", "classifier", "encoder and decoder", "vision", "mixture"),
)  # fmt: skip
@pytest.mark.parametrize("wrap", (lambda m: m, Peft, nn.DataParallel), ids=("plain", "peft", "wrapped"))
def test_layers_are_the_blocks(make: Any, expected: dict[str, int], wrap: Any) -> None:
    model = wrap(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scales(model)
    last = max(expected.values())
    prefix = "base_model.model." if isinstance(model, Peft) else ""
    for start, layer in expected.items():
        own = {scale for name, scale in found.items() if name.startswith(prefix + start)}
        assert own == {0.5 ** (last - layer)}, start


def test_short_lists_and_lists_inside_blocks_are_no_layers() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList([nn.ModuleList(nn.Linear(2, 2) for _ in range(5)), nn.ModuleList([nn.Linear(2, 2)])])
    assert set(layers_of_blocks(model).values()) == {1, 2}
    assert layers_of_blocks(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]))) == {}


class Matched(Decoder):
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": "model.embed_tokens", "blocks": r"model.layers.(\d+)", "rest": "model.norm|lm_head"}

    def no_weight_decay(self) -> set[str]:
        return {"model.embed_tokens.weight"}


def test_a_models_own_matcher_is_found_inside_wrappers() -> None:
    plain = scales(Matched())
    assert plain["model.norm.weight"] == 1.0
    for wrapped, prefix in ((Peft(Matched()), "base_model.model."), (nn.DataParallel(Matched()), "")):
        assert scales(wrapped) == {prefix + name: scale for name, scale in plain.items()}
        groups = create_optimizer_v2(wrapped, "adamw", lr=1e-3, weight_decay=0.1).param_groups
        undecayed = {n for g in groups for n in g["param_names"] if g["weight_decay"] == 0}
        assert f"{prefix}model.embed_tokens.weight" in undecayed
    assert owner_of(Decoder(), "group_matcher") is None


def test_layers_by_an_argument() -> None:
    assert scales(Matched(), layers="auto")["model.norm.weight"] == 0.5
    found = scales(Matched(), group_matcher=lambda name: 0 if "embed" in name else 1)
    assert {found["model.embed_tokens.weight"], found["lm_head.weight"]} == {0.5, 1.0}
    groups = create_optimizer_v2(
        Matched(), "sgd", lr=1.0, layer_decay=0.5, group_matcher={"stem": "model.embed", "rest": ".*"}
    ).param_groups
    assert {group["lr"] for group in groups} == {0.5, 1.0}
    groups = create_optimizer_v2(Matched(), "sgd", lr=1.0, layer_decay=0.5, layers="auto").param_groups
    assert len({group["lr"] for group in groups}) == 5
    with pytest.raises(ValueError, match="layers='all', expected None or 'auto'"):
        scales(Matched(), layers="all")
    with pytest.raises(ValueError, match="layers='auto', expected.*None with a group_matcher"):
        scales(Matched(), layers="auto", group_matcher=lambda name: 0)
    for argument in ({"layers": "auto"}, {"group_matcher": {"all": ".*"}}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}=.* for layer_decay: pass layer_decay"):
            create_optimizer_v2(Decoder(), "sgd", lr=1.0, **argument)


def timms_schedule(optimizer: torch.optim.Optimizer, value: float) -> None:
    """What timm's schedulers do with the rate of a step: warm-up and the least rate are values for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


@pytest.mark.parametrize("number", (0.8, torch.tensor(0.8)), ids=("number", "tensor"))
def test_layer_decay_as_timms_schedulers_read_it(number: float | Tensor) -> None:
    optimizer = create_optimizer_v2(Decoder(), "sgd", lr=number, layer_decay=0.5, layer_decay_as="lr_scale")
    assert all(
        float(group["lr"]) == pytest.approx(0.8) and "layer_scale" not in group for group in optimizer.param_groups
    )
    timms_schedule(optimizer, 1e-3)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-3 / 16, 1e-3 / 8, 1e-3 / 4, 1e-3 / 2, 1e-3])
    with pytest.raises(ValueError, match="layer_decay_as='scale', expected 'lr' or 'lr_scale'"):
        create_optimizer_v2(Decoder(), "sgd", lr=1.0, layer_decay=0.5, layer_decay_as="scale")
