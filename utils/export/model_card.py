"""README.md of an exported run: the hub's header, data, metrics, config, licences, usage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config.config import Config, to_mapping
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
    """The card's text.

    Args:
        dim: D; has_bias: of each kind of vectors that labels are ranked by; files: names
        in the folder.
    """
    name = f"{config.data.name} {config.method.name}"
    metrics = found_metrics(run)
    licence = data_licence(config.dataset_folder)
    head = {
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
    if metrics:
        split, values = metrics
        head["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {
                            "type": "text-classification",
                            "name": "extreme multi-label classification",
                        },
                        "dataset": {
                            "type": config.data.name,
                            "name": config.data.name,
                            "split": SPLITS[split],
                        },
                        "metrics": [
                            {"type": metric, "name": metric, "value": round(value, 2)}
                            for metric, value in values.items()
                        ],
                    }
                ],
            }
        ]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n",
        f"A text encoder of {dim} dimensions, trained by XMCKit (method {config.method.name}) on "
        f"{config.data.name}; texts are cut at {config.data.max_len} tokens"
        f"{_label_length(config)}.{_prompts(config)} Scores are "
        f"{'cosines' if _unit(config) else 'inner products'} of embeddings{_ranked(has_bias)}.\n",
        _files(files),
        _metrics(metrics),
        _usage(config, has_bias, files),
        "## Licence\n",
        f"Code: {CODE_LICENCE}. Data: {licence or 'unknown'}\n",
        "## Config\n",
        f"```yaml\n{yaml.safe_dump(_config(config), sort_keys=False, allow_unicode=True)}```\n",
    ]
    return "\n".join(part for part in parts if part)


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
            if not (found := re.match(r"[#*\s]*licen[cs]e\b[\s:*]*(.*)", line, re.IGNORECASE)):
                continue
            rest: list[str] = []
            for more in lines[number + 1 :]:
                # the next field is not indented
                field = bool(found[1]) and not more[:1].isspace()
                if field or (not more.strip() and (found[1] or rest)):
                    break
                rest.append(more)
            if text := " ".join(" ".join([found[1], *rest]).split()):
                return text
    return None


def _unit(config: Config) -> bool:
    return config.encoder.normalize is not False


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


def _usage(config: Config, has_bias: Mapping[str, bool], files: Sequence[str]) -> str:
    lines = [
        "## Usage\n",
        "```python",
        *(
            ["from pathlib import Path", "", "from safetensors.numpy import load_file"]
            if has_bias
            else []
        ),
        "from sentence_transformers import SentenceTransformer",
        "",
        'folder = "."      # this folder',
        "model = SentenceTransformer(folder)",
        'queries = model.encode(["a text", "another text"])      # [2, D]',
    ]
    if has_bias:
        rows = [
            'labels = Path(folder, "labels.txt").read_text(encoding="utf-8").split("\\n")[:-1]',
            'found = load_file(f"{folder}/labels.safetensors")',
        ]
        name = next(iter(has_bias))
        biased = has_bias[name]
        rows.append(
            'scores = queries @ found["classifier.weight"].T + found["classifier.bias"]      # '
            "[2, L]"
            if biased
            else f'scores = queries @ found["{name}"].T      # [2, L]'
        )
        rows += ["for row in scores:", "    print([labels[i] for i in (-row).argsort()[:5]])"]
        lines += rows
        if f"{name}.faiss" in files:
            ones = ["import numpy as np"] if biased else []
            asked = "np.pad(queries, ((0, 0), (0, 1)), constant_values=1)" if biased else "queries"
            lines += [
                "```\n",
                "The same by faiss:\n",
                "```python",
                "import faiss",
                *ones,
                "",
                f'index = faiss.read_index(f"{{folder}}/{name}.faiss")',
                f"scores, ids = index.search({asked}, min(5, len(labels)))",
            ]
    if "encoder.onnx" in files:
        lines += [
            "```\n",
            "The encoder by onnxruntime:\n",
            "```python",
            "import numpy as np",
            "import onnxruntime",
            "from tokenizers import Tokenizer",
            "",
            'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")',
            "tokenizer.enable_padding()",
            f"prompt = {config.encoder.point_prompt!r}",
            'encoded = tokenizer.encode_batch([prompt + text for text in ("a text", "another '
            'text")])',
            'session = onnxruntime.InferenceSession(f"{folder}/encoder.onnx")',
            'inputs = {"input_ids": np.array([e.ids for e in encoded]),',
            '          "attention_mask": np.array([e.attention_mask for e in encoded])}',
            "embeddings = session.run(None, inputs)[0]",
        ]
    return "\n".join([*lines, "```\n"])
