"""Configuration files of transformers: the parameters of Llama-like, GPT-2-like and BERT-like models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def read(path: Path) -> dict[str, Any]:
    """The file as a dict.

    Raises:
        ValueError: if there is no such file, or if it is no configuration.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path} is no configuration of transformers: it has no model_type")
    return config


def made_by_transformers(config: Config) -> nn.Module | None:
    """The model on torch's meta device; None where transformers is not installed or does not know it."""
    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    try:
        options = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
        made = transformers.AutoConfig.for_model(config["model_type"], **options)
        kind = getattr(transformers, (config.get("architectures") or ["AutoModel"])[0])
        with torch.device("meta"):
            model = kind._from_config(made) if hasattr(kind, "_from_config") else kind.from_config(made)
        model.tie_weights()
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError):
        return None
    return model if isinstance(model, nn.Module) else None


def derived(config: Config, path: Path) -> tuple[str, list[tuple[str, Shape]], list[str]]:
    """A title, names and shapes of the parameters, and the names of those that two layers share.

    Raises:
        ValueError: for a kind of model that is not known here, or a configuration that lacks a number.
    """
    kind = config["model_type"]
    architecture = (config.get("architectures") or [""])[0]
    family = next((family for family in FAMILIES if kind in family), None)
    if family is None:
        known = ", ".join(name for family in FAMILIES for name in family)
        raise ValueError(
            f"{path} has model_type {kind!r}, whose shapes are not known here (known are {known}); "
            "install transformers, or write module:callable"
        )
    try:
        parameters, shared = FAMILIES[family](config, architecture)
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}") from error
    return architecture or kind, parameters, shared


Derived = tuple[list[tuple[str, Shape]], list[str]]


def llama_like(config: Config, architecture: str) -> Derived:
    """Decoders with RMS norms, grouped queries and a gated perceptron."""
    kind, width, vocabulary = config["model_type"], config["hidden_size"], config["vocab_size"]
    inner, heads = config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    groups = config.get("num_key_value_heads") or heads
    in_bias = config.get("attention_bias", kind == "qwen2")
    out_bias = config.get("attention_bias", False) and kind != "qwen2"
    up_bias = config.get("mlp_bias", False)

    def block(i: int) -> Named:
        at = f"model.layers.{i}"
        for name, rows in (("q", heads * size), ("k", groups * size), ("v", groups * size)):
            yield from _linear(f"{at}.self_attn.{name}_proj", rows, width, in_bias)
        yield from _linear(f"{at}.self_attn.o_proj", width, heads * size, out_bias)
        if kind == "qwen3":
            yield from ((f"{at}.self_attn.{name}_norm.weight", (size,)) for name in "qk")
        for name, out, into in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            yield from _linear(f"{at}.mlp.{name}_proj", out, into, up_bias)
        for name in ("input", "post_attention"):
            yield f"{at}.{name}_layernorm.weight", (width,)

    found: list[tuple[str, Shape]] = [("model.embed_tokens.weight", (vocabulary, width))]
    for i in range(config["num_hidden_layers"]):
        found += block(i)
    found.append(("model.norm.weight", (width,)))
    tied = config.get("tie_word_embeddings", kind == "gemma")
    if "LM" not in architecture:
        return found, []
    return (found, ["model.embed_tokens.weight"]) if tied else ([*found, ("lm_head.weight", (vocabulary, width))], [])


def gpt2_like(config: Config, architecture: str) -> Derived:
    """Decoders with learned positions, whose matrices lie transposed and whose output layer is the embedding."""
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]

    def block(i: int) -> Named:
        at = f"transformer.h.{i}"
        yield from _norm(f"{at}.ln_1", width)
        for name, into, out in (("c_attn", width, 3 * width), ("c_proj", width, width)):
            yield from ((f"{at}.attn.{name}.weight", (into, out)), (f"{at}.attn.{name}.bias", (out,)))
        yield from _norm(f"{at}.ln_2", width)
        for name, into, out in (("c_fc", width, inner), ("c_proj", inner, width)):
            yield from ((f"{at}.mlp.{name}.weight", (into, out)), (f"{at}.mlp.{name}.bias", (out,)))

    vocabulary, positions = config["vocab_size"], config.get("n_positions", 1024)
    found: list[tuple[str, Shape]] = [
        ("transformer.wte.weight", (vocabulary, width)),
        ("transformer.wpe.weight", (positions, width)),
    ]
    for i in range(config["n_layer"]):
        found += block(i)
    found += _norm("transformer.ln_f", width)
    tied = config.get("tie_word_embeddings", True)
    if "LM" not in architecture:
        return found, []
    return (found, ["transformer.wte.weight"]) if tied else ([*found, ("lm_head.weight", (vocabulary, width))], [])


def bert_like(config: Config, architecture: str) -> Derived:
    """Encoders with the head that the configuration names."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    base = "roberta" if config["model_type"] != "bert" else "bert"

    def block(i: int) -> Named:
        at = f"{base}.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{at}.attention.self.{name}", width, width, True)
        yield from _linear(f"{at}.attention.output.dense", width, width, True)
        yield from _norm(f"{at}.attention.output.LayerNorm", width)
        yield from _linear(f"{at}.intermediate.dense", inner, width, True)
        yield from _linear(f"{at}.output.dense", width, inner, True)
        yield from _norm(f"{at}.output.LayerNorm", width)

    tables = {
        "word": vocabulary,
        "position": config.get("max_position_embeddings", 512),
        "token_type": config.get("type_vocab_size", 2),
    }
    found: list[tuple[str, Shape]] = [
        (f"{base}.embeddings.{name}_embeddings.weight", (rows, width)) for name, rows in tables.items()
    ]
    found += _norm(f"{base}.embeddings.LayerNorm", width)
    for i in range(config["num_hidden_layers"]):
        found += block(i)
    words_twice = "MaskedLM" in architecture or "PreTraining" in architecture or "CausalLM" in architecture
    if not architecture or architecture.endswith("Model") or "PreTraining" in architecture:
        found += _linear(f"{base}.pooler.dense", width, width, True)
    if words_twice:
        found += _linear("head.transform.dense", width, width, True)
        found += _norm("head.transform.LayerNorm", width)
        found.append(("head.bias", (vocabulary,)))
    if "PreTraining" in architecture:
        found += _linear("head.seq_relationship", 2, width, True)
    if "Classification" in architecture or "QuestionAnswering" in architecture:
        if base == "bert" and "Sequence" in architecture:
            found += _linear(f"{base}.pooler.dense", width, width, True)
        elif "Sequence" in architecture:
            found += _linear("classifier.dense", width, width, True)
        labels = 2 if "QuestionAnswering" in architecture else len(config.get("id2label") or (0, 1))
        found += _linear("classifier", labels, width, True)
    return found, [f"{base}.embeddings.word_embeddings.weight"] if words_twice else []


FAMILIES: Mapping[tuple[str, ...], Any] = {
    ("llama", "mistral", "qwen2", "qwen3", "gemma"): llama_like,
    ("gpt2",): gpt2_like,
    ("bert", "roberta", "xlm-roberta", "camembert"): bert_like,
}


def _linear(name: str, out: int, into: int, bias: bool) -> Named:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
