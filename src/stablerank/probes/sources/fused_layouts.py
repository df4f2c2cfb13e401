"""Where the query, key, value, gate and up weights lie inside a fused matrix, by model type.

Legend: O output features, I input features.

A fused axis is ``groups`` repetitions of consecutive pieces: one group is plain concatenation, one group a head is the
interleaving of GPT-NeoX, and ``groups`` = width with pieces of one is the column interleaving of gpt-oss.

| weight            | model types                                      | fused axis (groups x pieces)            |
|-------------------|--------------------------------------------------|-----------------------------------------|
| `c_attn`          | gpt2, openai-gpt, imagegpt, decision_transformer | columns (`Conv1D`): 1 x (q, k, v)       |
| `c_attn`, crossed | the same, twice as wide as high                  | columns: 1 x (k, v)                     |
| `c_attn`          | gpt_bigcode: multi-query / other                 | 1 x (q, k, v) / heads x (q, k, v)       |
| `query_key_value` | gpt_neox, gpt_neox_japanese, bloom, persimmon    | heads x (q, k, v)                       |
| `query_key_value` | falcon: new / multi-query / other                | kv heads x (q, k, v) / 1 x / heads x    |
| `qkv_proj`        | phi3, phi4_multimodal                            | 1 x (q, k, v) of their head counts      |
| `qkv_proj`        | minimax (lightning attention)                    | heads x (q, k, v)                       |
| `qkv_proj`        | codegen                                          | 4 x (q, v, k)                           |
| `Wqkv`            | mpt, modernbert / dbrx                           | 1 x (q, k, v), dbrx of its head counts  |
| `gate_up_proj`    | phi3, glm and kin, dia, zamba2, minimax_m3_vl    | 1 x (gate, up)                          |
| `Wi`              | modernbert, modernbert-decoder                   | 1 x (gate, up)                          |
| `input_linear`    | granitemoe kin (shared expert)                   | 1 x (gate, up)                          |
| expert stacks     | every other: rows; llama4, aria: columns         | 1 x (gate, up)                          |
| expert stacks     | gpt_oss                                          | columns: width x (gate, up)             |

"Gate" is the half that passes the activation. Rows are meant unless columns are named. Of an expert stack the axis is
the one that is not ``hidden_size``; only a square slice is decided by the model type.

Source: the modelling code of transformers 5.23 (``view``, ``split`` and ``chunk`` after each projection).

Left out on purpose: models whose code is not in transformers, vision and audio towers (other layouts under the same
names) and ``kv_b_proj`` of latent attention, which acts on one latent as one matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


class LayoutUnknownError(Exception):
    """The config does not say how a fused weight is laid out; the message is the end of a sentence."""


@dataclass(frozen=True)
class Layout:
    """``axis`` (0 rows, 1 columns) is ``groups`` times the ``pieces``, each a name and how many lines it takes."""

    axis: int
    groups: int
    pieces: tuple[tuple[str, int], ...]


Shape = tuple[int, int]
Rule = Callable[[Shape, Config], Layout]


def fused_layout(leaf: str, shape: Shape, config: Config) -> Layout | None:
    """The layout of a 2-D weight whose last name is ``leaf``, or None where such a weight is not fused.

    Raises:
        LayoutUnknownError: it is fused, but the config lacks what is needed or contradicts the shape.
    """
    if leaf not in _RULES:
        return None
    rule = _RULES[leaf].get(_model_type(config))
    if rule is None:
        if leaf in _ALWAYS_FUSED:
            raise LayoutUnknownError(f"no layout of {leaf} is known for model type {_model_type(config)!r}")
        return None
    return _checked(rule(shape, config), shape)


def expert_layout(shape: Shape, config: Config) -> Layout:
    """The layout of gate and up in one expert's slice of a stack; raises `LayoutUnknownError` like `fused_layout`."""
    model_type, hidden = _model_type(config), _number(config, "hidden_size", "n_embd", "d_model")
    rows, columns = shape
    if hidden not in shape:
        raise LayoutUnknownError(f"neither side of {rows} x {columns} is the hidden size {hidden}")
    if rows == columns and model_type in _EITHER_STACKS:
        raise LayoutUnknownError(
            f"model type {model_type!r} is stored in two ways that a square slice does not tell apart"
        )
    axis = int(model_type in _COLUMN_STACKS if rows == columns else rows == hidden)
    if model_type == "gpt_oss":
        return _checked(Layout(axis, shape[axis] // 2, (("gate_proj", 1), ("up_proj", 1))), shape)
    return _checked(_gate_and_up(axis, shape), shape)


def text_config(config: Config) -> Config:
    """The config of the language model: ``text_config`` over the outer one where a multimodal model nests it."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _model_type(config: Config) -> str:
    return str(config.get("model_type", ""))


def _number(config: Config, *names: str) -> int:
    """The first of ``names`` that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if type(value) is int and value > 0:
            return value
    raise LayoutUnknownError(f"config.json gives no {names[0]}")


def _section(config: Config, name: str) -> Config:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _checked(layout: Layout, shape: Shape) -> Layout:
    expected, found = layout.groups * sum(width for _, width in layout.pieces), shape[layout.axis]
    if expected != found or layout.groups < 1 or any(width < 1 for _, width in layout.pieces):
        raise LayoutUnknownError(f"config.json gives {expected} fused lines and the weight has {found}")
    return layout


def _qkv(axis: int, groups: int, query: int, key_value: int) -> Layout:
    return Layout(axis, groups, (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)))


def _gate_and_up(axis: int, shape: Shape) -> Layout:
    return Layout(axis, 1, (("gate_proj", shape[axis] // 2), ("up_proj", shape[axis] // 2)))


def _glu(shape: Shape, config: Config) -> Layout:
    return _gate_and_up(0, shape)


def _thirds(shape: Shape, config: Config) -> Layout:
    return _qkv(0, 1, shape[0] // 3, shape[0] // 3)


def _conv1d(shape: Shape, config: Config) -> Layout:
    width = shape[0]
    if shape[1] == 2 * width:  # cross-attention: the query is a weight of its own
        return Layout(1, 1, (("k_proj", width), ("v_proj", width)))
    return _qkv(1, 1, width, width)


def _by_head(shape: Shape, config: Config) -> Layout:
    heads = _number(config, "num_attention_heads", "n_head")
    width = shape[0] // (3 * heads)
    return _qkv(0, heads, width, width)


def _grouped_query(shape: Shape, config: Config) -> Layout:
    heads = _number(config, "num_attention_heads")
    width = _number({"head_dim": _number(config, "hidden_size") // heads} | _given(config, "head_dim"), "head_dim")
    return _qkv(0, 1, heads * width, _number(config, "num_key_value_heads", "num_attention_heads") * width)


def _given(config: Config, name: str) -> dict[str, Any]:
    """The entry ``name``, if it is there and not null."""
    return {name: config[name]} if config.get(name) is not None else {}


def _falcon(shape: Shape, config: Config) -> Layout:
    heads = _number(config, "num_attention_heads", "n_head")
    width = _number(config, "hidden_size") // heads
    if config.get("new_decoder_architecture", False):
        groups = _number(config, "num_kv_heads", "n_head_kv", "num_attention_heads", "n_head")
        return _qkv(0, groups, heads // groups * width, width)
    if config.get("multi_query", True):
        return _qkv(0, 1, heads * width, width)
    return _qkv(0, heads, width, width)


def _bigcode(shape: Shape, config: Config) -> Layout:
    if not config.get("multi_query", True):
        return _by_head(shape, config)
    hidden = _number(config, "n_embd", "hidden_size")
    return _qkv(0, 1, hidden, hidden // _number(config, "n_head", "num_attention_heads"))


def _codegen(shape: Shape, config: Config) -> Layout:
    width = shape[0] // 12
    return Layout(0, 4, (("q_proj", width), ("v_proj", width), ("k_proj", width)))


def _dbrx(shape: Shape, config: Config) -> Layout:
    hidden = _number(config, "d_model", "hidden_size")
    width = hidden // _number(config, "n_heads", "num_attention_heads")
    return _qkv(0, 1, hidden, width * _number(_section(config, "attn_config"), "kv_n_heads"))


def _for(rule: Rule, *model_types: str) -> dict[str, Rule]:
    return dict.fromkeys(model_types, rule)


_GLM = ("glm", "glm4", "glm4v", "glm4v_text", "glm_ocr", "glm_ocr_text", "glm_image", "glm_image_text")
_RULES: dict[str, dict[str, Rule]] = {
    "c_attn": _for(_conv1d, "gpt2", "openai-gpt", "imagegpt", "decision_transformer") | _for(_bigcode, "gpt_bigcode"),
    "query_key_value": _for(_by_head, "gpt_neox", "gpt_neox_japanese", "bloom", "persimmon") | _for(_falcon, "falcon"),
    "qkv_proj": _for(_grouped_query, "phi3", "phi4_multimodal") | _for(_by_head, "minimax") | _for(_codegen, "codegen"),
    "Wqkv": _for(_thirds, "mpt", "modernbert") | _for(_dbrx, "dbrx"),
    "gate_up_proj": _for(
        _glu, "phi3", "phi4_multimodal", *_GLM, "dia", "zamba2", "minimax_m3_vl", "minimax_m3_vl_text"
    ),
    "Wi": _for(_glu, "modernbert", "modernbert-decoder"),
    "input_linear": _for(_glu, "granitemoeshared", "granitemoehybrid", "granitemoe_swa"),
    # Fused wherever these names occur, with layouts that only code outside transformers knows.
    "W_pack": {},
    "wqkv": {},
    "attn_qkv": {},
    "qkv": {},
}
_ALWAYS_FUSED = frozenset(_RULES) - {"Wi", "input_linear"}
_COLUMN_STACKS = frozenset({"gpt_oss", "openai_privacy_filter", "llama4", "llama4_text", "aria", "aria_text"})
"""Stacks on disk as (experts, hidden, 2 x intermediate)."""
_EITHER_STACKS = frozenset({"", "qwen3_vl_moe", "qwen3_vl_moe_text"})
"""By columns from the hub, by rows from transformers 5; without a model type, either."""
