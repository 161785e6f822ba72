"""A finished run as a folder that answers elsewhere, and that other programs read.

    python -m utils.export RUN DIR           # RUN: folder or its config.yaml; DIR: new or empty
    python -m utils.export RUN DIR --onnx    # pip install onnx onnxruntime onnxscript
    python -m utils.export RUN DIR --eval.index hnsw      # DIR has the settings that are given

DIR, which needs neither the run nor its data, then holds
  config.yaml, model/    what predict.py, serve.py and `xmckit.XMC.load` open by the name DIR:
                         weights, label texts, thresholds; no path of this machine
  README.md              model card: data, metrics, config, licences, usage
and of a run with one encoder, for other programs,
  the encoder            in the layout of sentence-transformers: SentenceTransformer(DIR)
  labels.safetensors     what labels are ranked by, score = E(text) . row + bias:
                         `embeddings` [L, D] of label encoders; `classifier.weight` [L, D] and
                         `classifier.bias` [L] of classifiers, divided by their temperature; rows
                         in the order of model/labels.txt
  embeddings.faiss,      the same as flat inner product indexes (pip install faiss-cpu); a bias
  classifier.faiss       is one more dimension, in which a query is 1
  encoder.onnx           with --onnx: input_ids and attention_mask [texts, tokens] int64
                         -> sentence_embedding [texts, D] float32

What was written is read back and compared with the run's own answers and embeddings before DIR
appears. Of methods whose ranking is no inner product (elias) other programs read the encoder alone;
linear trees and fusions have none, their members' runs lie in RUN/stages. Files that DIR has in
common with RUN take disk space once where the file system has hard links.
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
