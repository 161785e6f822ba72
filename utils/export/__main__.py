"""A finished run as a folder that other programs read.

    python -m utils.export RUN DIR           # RUN: folder or its config.yaml; DIR: new or empty
    python -m utils.export RUN DIR --onnx    # pip install onnx onnxruntime onnxscript
    python -m utils.export RUN DIR --data.root ../Datasets

DIR then holds
  the encoder            in the layout of sentence-transformers: SentenceTransformer(DIR)
  labels.safetensors     what labels are ranked by, score = E(text) . row + bias:
                         `embeddings` [L, D] of label encoders; `classifier.weight` [L, D] and
                         `classifier.bias` [L] of classifiers, divided by their temperature
  labels.txt             the labels' texts, one a line, in the order of these rows
  embeddings.faiss,      the same as flat inner product indexes (pip install faiss-cpu); a bias
  classifier.faiss       is one more dimension, in which a query is 1
  encoder.onnx           with --onnx: input_ids and attention_mask [texts, tokens] int64
                         -> sentence_embedding [texts, D] float32
  README.md              model card: data, metrics, config, licences, usage

What was written is read back and compared with the run's own embeddings before DIR appears. Linear
trees have no encoder and cannot be exported; of methods whose ranking is no inner product (elias)
only the encoder is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder or its config.yaml")
    parser.add_argument("folder", help="where to write; new or empty")
    parser.add_argument("--onnx", action="store_true", help="write encoder.onnx too")
    add_plugin_option(parser)
    add_debug_option(parser)
    options, overrides = parse_words(parser, words)
    with command(options.debug, "interrupted; nothing was written"):
        from engine.exporter import export  # here: --help is instant, and Ctrl-C a line
        from utils.run.logs import start_logging

        start_logging()
        export(options.run, options.folder, options.onnx, overrides)
    print(f"exported: {options.folder}")


if __name__ == "__main__":
    main()
