"""Made transformers of many types, of a few thousand parameters, in folders as the hub has them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

WORDS = (
    "the a of and to in is it kernel editor shell image network audio video game python java "
    "compiler font mail browser database archive printer cluster sensor robot socket paper query "
    "passage : vim bash photo sound movie chess linux snake coffee gcc glyph letter web table "
    "zip node probe arm tool train test"
).split()
POSITIONS = 40
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
POSITIONED = {**SHAPE, "max_position_embeddings": POSITIONS}
GROUPED = {**POSITIONED, "num_key_value_heads": 2}
HALVES = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": POSITIONS}
TEXT_PART = {**POSITIONED, "bos_token_id": 0, "eos_token_id": 2}
IMAGE_PART = {**SHAPE, "image_size": 32, "patch_size": 16}
RELATIVE = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["c2p", "p2c"],
}
KINDS: dict[str, tuple[str, dict]] = {  # name -> (class of its config, arguments)
    "albert": ("AlbertConfig", {**POSITIONED, "embedding_size": 8}),
    "bart": ("BartConfig", {**HALVES, "max_position_embeddings": POSITIONS}),
    "bert": ("BertConfig", POSITIONED),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 3, "n_head": 2}),
    "camembert": ("CamembertConfig", POSITIONED),
    "clip": ("CLIPConfig", {"text_config": TEXT_PART, "vision_config": IMAGE_PART}),
    "deberta-v2": ("DebertaV2Config", {**POSITIONED, **RELATIVE}),
    "deberta-v2-absolute": ("DebertaV2Config", POSITIONED),
    "distilbert": (
        "DistilBertConfig",
        {
            "dim": 16,
            "n_layers": 3,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "electra": ("ElectraConfig", {**POSITIONED, "embedding_size": 8}),
    "fnet": (
        "FNetConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "intermediate_size": 32,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8}),
    "gpt2": ("GPT2Config", GPT),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 16,
            "num_layers": 4,
            "num_heads": 2,
            "intermediate_size": 32,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": POSITIONS,
        },
    ),
    "led": (
        "LEDConfig",
        {
            **HALVES,
            "max_encoder_position_embeddings": POSITIONS,
            "max_decoder_position_embeddings": POSITIONS,
            "attention_window": [4, 4, 4],
        },
    ),
    "llama": ("LlamaConfig", GROUPED),
    "longformer": ("LongformerConfig", {**POSITIONED, "attention_window": [4, 4, 4]}),
    "longt5": ("LongT5Config", {**T5, "local_radius": 3}),
    "mamba": ("MambaConfig", {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}),
    "marian": ("MarianConfig", {**HALVES, "max_position_embeddings": POSITIONS}),
    "mistral": ("MistralConfig", GROUPED),
    "modernbert": ("ModernBertConfig", POSITIONED),
    "mpnet": ("MPNetConfig", POSITIONED),
    "mt5": ("MT5Config", T5),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "roberta": ("RobertaConfig", POSITIONED),
    "t5": ("T5Config", T5),
    "xlm-roberta": ("XLMRobertaConfig", POSITIONED),
    "xlnet": ("XLNetConfig", {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 32}),
}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # with the ids of RoBERTa's
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
WITHOUT_PADDING = {"gpt2", "gpt-neo", "llama", "mistral"}


def tiny_config(kind: str, **more) -> PreTrainedConfig:
    """The config of a made transformer of a kind of KINDS."""
    name, arguments = KINDS[kind]
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), **IDS, "cls_token_id": 0, "sep_token_id": 2}
    if kind in WITHOUT_PADDING:
        sizes["pad_token_id"] = None
    if kind == "clip":
        inside = {**arguments["text_config"], **sizes, **more}
        return transformers.CLIPConfig(**{**arguments, "text_config": inside})
    return getattr(transformers, name)(**{**arguments, **sizes, **more})


def tiny_tokenizer(padding: bool = True, **more) -> PreTrainedTokenizerFast:
    """A tokenizer of WORDS that puts <s> before a text and </s> behind it."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        pad_token="<pad>" if padding else None,
        model_input_names=["input_ids", "attention_mask"],
        **more,
    )


def write_tiny(kind: str, folder: Path, tokenizer: dict | None = None, **more) -> Path:
    """A transformer of a kind of KINDS with a tokenizer, saved into a folder; its weights are far
    from zero."""
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(kind, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    tiny_tokenizer(kind not in WITHOUT_PADDING, **(tokenizer or {})).save_pretrained(folder)
    return folder
