"""The usage that a model card shows: code that reads an exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.config.config import Config

ANSWER = """\
from xmckit import XMC

xmc = XMC.load(".")      # this folder
answers = xmc.predict(["a text", "another text"], k=5)"""
COMMANDS = """\
python predict.py FOLDER --text "a text" --k 5
python serve.py FOLDER                # POST /predict, and a page to type a text on"""
ENCODE = """\
from sentence_transformers import SentenceTransformer

folder = "."      # this folder
model = SentenceTransformer(folder)
queries = model.encode(["a text", "another text"])      # [2, D]"""
RANK = """\
labels = Path(folder, "model", "labels.txt").read_text(encoding="utf-8").split("\\n")[:-1]
found = load_file(f"{{folder}}/labels.safetensors")
scores = queries @ {scores}      # [2, L]
for row in scores:
    print([labels[i] for i in (-row).argsort()[:5]])"""
FAISS = """\
index = faiss.read_index(f"{{folder}}/{name}.faiss")
scores, ids = index.search({queries}, min(5, len(labels)))"""
ONNX = """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_padding()
prompt = {prompt!r}
encoded = tokenizer.encode_batch([prompt + text for text in ("a text", "another text")])
session = onnxruntime.InferenceSession(f"{{folder}}/encoder.onnx")
inputs = {{"input_ids": np.array([e.ids for e in encoded]),
          "attention_mask": np.array([e.attention_mask for e in encoded])}}
embeddings = session.run(None, inputs)[0]"""


def answering() -> str:
    """Return the section on how XMCKit answers by the folder."""
    commands = f"In XMCKit's folder:\n\n```shell\n{COMMANDS}\n```\n"
    return f"{_block('## Usage', ANSWER)}\n{commands}"


def usage(
    config: Config,
    has_bias: Mapping[str, bool],
    files: Sequence[str],
) -> str:
    """Return the section on other programs.

    Args:
        has_bias: of each kind of vectors that labels are ranked by.
        files: names in the folder.
    """
    parts = [_block("## Other programs", _with_sentence_transformers(has_bias))]
    name = next(iter(has_bias), "")
    if f"{name}.faiss" in files:
        parts.append(_block("The same by faiss:", _with_faiss(name, has_bias[name])))
    if "encoder.onnx" in files:
        code = ONNX.format(prompt=config.encoder.point_prompt)
        parts.append(_block("The encoder by onnxruntime:", code))
    return "\n".join(parts)


def _block(title: str, code: str) -> str:
    return f"{title}\n\n```python\n{code}\n```\n"


def _with_sentence_transformers(has_bias: Mapping[str, bool]) -> str:
    if not has_bias:
        return ENCODE
    name = next(iter(has_bias))
    scores = f'found["{name}"].T'
    if has_bias[name]:
        scores = 'found["classifier.weight"].T + found["classifier.bias"]'
    imports = "from pathlib import Path\n\nfrom safetensors.numpy import load_file"
    return f"{imports}\n{ENCODE}\n{RANK.format(scores=scores)}"


def _with_faiss(name: str, biased: bool) -> str:
    """A bias is one more dimension, in which a query is 1."""
    imports = "import faiss\nimport numpy as np\n" if biased else "import faiss\n"
    queries = "np.pad(queries, ((0, 0), (0, 1)), constant_values=1)" if biased else "queries"
    return f"{imports}\n{FAISS.format(name=name, queries=queries)}"
