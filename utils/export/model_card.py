"""README.md of an exported run: the hub's header, data, metrics, config, licences, usage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.config.config import Config, to_mapping
from utils.export.card_usage import answering, usage
from utils.export.portable_config import portable
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


@dataclass(frozen=True)
class Contents:
    """What an exported folder holds.

    Attributes:
        num_labels: L.
        files: names in the folder.
        dim: D of the embeddings that other programs make; None where none can.
        has_bias: of each kind of vectors that these rank labels by.
    """

    num_labels: int
    files: Sequence[str]
    dim: int | None = None
    has_bias: Mapping[str, bool] = field(default_factory=dict)


def model_card(
    config: Config,
    run: Path,
    contents: Contents,
) -> str:
    """Return the card's text; run: the folder whose metrics are told."""
    name = f"{config.data.name} {config.method.name}"
    metrics = found_metrics(run)
    licence = data_licence(config.dataset_folder)
    head = _head(config, licence, contents.dim is not None)
    if metrics:
        head["model-index"] = [{"name": name, "results": [_result(config.data.name, *metrics)]}]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n",
        _introduction(config, contents),
        _files(contents.files),
        _metrics(metrics),
        answering(),
        "" if contents.dim is None else usage(config, contents.has_bias, contents.files),
        "## Licence\n",
        f"Code: {CODE_LICENCE}. Data: {licence or 'unknown'}\n",
        "## Config\n",
        f"```yaml\n{yaml.safe_dump(_config(config), sort_keys=False, allow_unicode=True)}```\n",
    ]
    return "\n".join(part for part in parts if part)


def _head(
    config: Config,
    licence: str | None,
    is_encoder: bool,
) -> dict[str, Any]:
    """The hub's header, without metrics."""
    others = ["sentence-transformers", "feature-extraction", "sentence-similarity"]
    head: dict[str, Any] = {
        "library_name": "sentence-transformers" if is_encoder else "xmckit",
        "pipeline_tag": "sentence-similarity" if is_encoder else "text-classification",
        "license": "unknown" if licence is None else "other",
        "tags": [
            *(others if is_encoder else ()),
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


def _introduction(config: Config, contents: Contents) -> str:
    data = config.data
    found = (
        f"Finds the best of {contents.num_labels:,} labels for a text. Trained by XMCKit (method "
        f"{config.method.name}) on {data.name}."
    )
    if contents.dim is None:
        return f"{found}\n"
    kind = "inner products" if config.encoder.normalize is False else "cosines"
    return (
        f"{found} For other programs it is a text encoder of {contents.dim} dimensions; texts are "
        f"cut at {data.max_len} tokens{_label_length(config)}.{_prompts(config)} Scores are {kind} "
        f"of embeddings{_ranked(contents.has_bias)}.\n"
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
    """Without what belongs to the machine that it ran on."""
    sections = portable(to_mapping(config))
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
        return "; how labels are ranked is no inner product, and XMCKit's alone"
    if len(has_bias) > 1:
        return " or with classifier rows; XMCKit may combine both"
    return "" if "embeddings" in has_bias else " and classifier rows, plus a bias"


def _files(files: Sequence[str]) -> str:
    known = {
        "config.yaml": "XMCKit's settings",
        "model": "all that XMCKit answers with: weights as safetensors and numpy arrays, "
        "`labels.txt` with the labels' texts in the order of their ids",
        "modules.json": "the encoder in the layout of sentence-transformers",
        "labels.safetensors": "`embeddings` [L, D]; `classifier.weight` [L, D] and "
        "`classifier.bias` [L]: score = embedding . row (+ bias); which of them are there depends "
        "on the method",
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
