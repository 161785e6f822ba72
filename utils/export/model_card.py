"""README.md of an exported run: the hub's header, data, metrics, config, licences, usage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config.config import Config, to_mapping
from utils.export.card_usage import usage
from utils.reading.saved import read_facts

SHOWN = (
    "P@1",
    "P@3",
    "P@5",
    "nDCG@1",
    "nDCG@3",
    "nDCG@5",
    "PSP@1",
    "PSP@3",
    "PSP@5",
    "R@10",
    "R@100",
)
SPLITS = {"tst": "test", "val": "validation"}  # the first that was measured is told
CODE_LICENCE = "Apache-2.0"


def model_card(
    config: Config, run: Path, dim: int, has_bias: Mapping[str, bool], files: Sequence[str]
) -> str:
    """Return the card's text.

    Args:
        dim: D of the embeddings.
        has_bias: of each kind of vectors that labels are ranked by.
        files: names in the folder.
    """
    name = f"{config.data.name} {config.method.name}"
    metrics = found_metrics(run)
    licence = data_licence(config.dataset_folder)
    head = _head(config, licence)
    if metrics:
        head["model-index"] = [{"name": name, "results": [_result(config.data.name, *metrics)]}]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n",
        _introduction(config, dim, has_bias),
        _files(files),
        _metrics(metrics),
        usage(config, has_bias, files),
        "## Licence\n",
        f"Code: {CODE_LICENCE}. Data: {licence or 'unknown'}\n",
        "## Config\n",
        f"```yaml\n{yaml.safe_dump(_config(config), sort_keys=False, allow_unicode=True)}```\n",
    ]
    return "\n".join(part for part in parts if part)


def _head(config: Config, licence: str | None) -> dict[str, Any]:
    """The hub's header, without metrics."""
    head: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": "unknown" if licence is None else "other",
        "tags": [
            "sentence-transformers",
            "feature-extraction",
            "sentence-similarity",
            "extreme-multi-label-classification",
            "xmckit",
            config.method.name,
        ],
    }
    if licence is not None:
        head["license_name"] = "see-data-licence-below"
    return head


def _result(
    data: str,
    split: str,
    values: Mapping[str, float],
) -> dict[str, Any]:
    """Metrics as the hub's header has them."""
    return {
        "task": {
            "type": "text-classification",
            "name": "extreme multi-label classification",
        },
        "dataset": {"type": data, "name": data, "split": SPLITS[split]},
        "metrics": [
            {"type": metric, "name": metric, "value": round(value, 2)}
            for metric, value in values.items()
        ],
    }


def _introduction(
    config: Config,
    dim: int,
    has_bias: Mapping[str, bool],
) -> str:
    data = config.data
    kind = "inner products" if config.encoder.normalize is False else "cosines"
    return (
        f"A text encoder of {dim} dimensions, trained by XMCKit (method {config.method.name}) on "
        f"{data.name}; texts are cut at {data.max_len} tokens{_label_length(config)}."
        f"{_prompts(config)} Scores are {kind} of embeddings{_ranked(has_bias)}.\n"
    )


def found_metrics(run: Path) -> tuple[str, dict[str, float]] | None:
    """Return (split, metrics in percent) of the test split, else the validation split.

    None if neither was measured.
    """
    for split in SPLITS:
        path = run / f"{split}_metrics.json"
        if path.is_file():
            values = read_facts(path)
            if shown := {metric: values[metric] for metric in SHOWN if metric in values}:
                return split, shown
    return None


def data_licence(folder: Path) -> str | None:
    """Return what the data set's README says of its licence, if it does.

    That is the paragraph or field that begins with the word.
    """
    for path in sorted(folder.glob("README*")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            opening = re.match(r"[#*\s]*licen[cs]e\b[\s:*]*(.*)", line, re.IGNORECASE)
            if opening:
                first = opening[1]
                whole = " ".join([first, *_rest_of(bool(first), lines[number + 1 :])])
                if text := " ".join(whole.split()):
                    return text
    return None


def _rest_of(is_field: bool, lines: Sequence[str]) -> list[str]:
    """The lines that belong to a field or paragraph which was opened on the line before.

    Args:
        is_field: text stands on that line: what is not indented then begins another field.
    """
    rest: list[str] = []
    for line in lines:
        if is_field and not line[:1].isspace():
            break
        if not line.strip() and (is_field or rest):
            break
        rest.append(line)
    return rest


def _config(config: Config) -> dict[str, Any]:
    """Without what belongs to the machine that it ran on; of a folder only its name."""
    sections = to_mapping(config)
    for key in ("name", "init", "tokenizer"):
        if (value := sections["encoder"][key]) and Path(value).is_dir():
            sections["encoder"][key] = Path(value).resolve().name
    return {name: sections[name] for name in ("encoder", "method", "loss", "optim", "train")}


def _label_length(config: Config) -> str:
    length = config.data.label_max_len
    return f" (texts of labels at {length})" if length not in (None, config.data.max_len) else ""


def _prompts(config: Config) -> str:
    before = config.encoder.point_prompt
    of_labels = config.encoder.prompt_of_labels
    if not before and not of_labels:
        return ""
    return (
        f" Before a text stands the prompt {json.dumps(before, ensure_ascii=False)}, before a "
        f"label's text {json.dumps(of_labels, ensure_ascii=False)}: `encode_query` and "
        "`encode_document` put them there."
    )


def _ranked(has_bias: Mapping[str, bool]) -> str:
    if not has_bias:
        return "; how the run ranked labels is no inner product and not part of this folder"
    if len(has_bias) > 1:
        return " or with classifier rows; the run itself may combine both (XMCKit's predict.py)"
    return "" if "embeddings" in has_bias else " and classifier rows, plus a bias"


def _files(files: Sequence[str]) -> str:
    known = {
        "modules.json": "the encoder in the layout of sentence-transformers",
        "labels.safetensors": "`embeddings` [L, D]; `classifier.weight` [L, D] and "
        "`classifier.bias` [L]: score = embedding . row (+ bias); which of them are there depends "
        "on the method",
        "labels.txt": "the labels' texts, one a line, in the order of the rows",
        "embeddings.faiss": "faiss index (flat, inner product) over `embeddings`",
        "classifier.faiss": "faiss index over `classifier.weight`, its bias as one more dimension "
        "in which a query is 1",
        "encoder.onnx": "inputs `input_ids` and `attention_mask` [texts, tokens] int64, as "
        "tokenizer.json makes them, special tokens included; output `sentence_embedding` "
        "[texts, D] float32",
    }
    return "\n".join(
        [
            "| file | holds |",
            "| --- | --- |",
            *(f"| {f} | {known[f]} |" for f in known if f in files),
            "",
        ]
    )


def _metrics(metrics: tuple[str, dict[str, float]] | None) -> str:
    if metrics is None:
        return ""
    split, values = metrics
    return "\n".join(
        [
            f"## Metrics ({SPLITS[split]} split, percent)\n",
            "| " + " | ".join(values) + " |",
            "| --- " * len(values) + "|",
            "| " + " | ".join(f"{value:.2f}" for value in values.values()) + " |",
            "",
        ]
    )
