"""The text files of AttentionXML and LightXML."""

from __future__ import annotations

from pathlib import Path

from utils.prepare.folder import Folder
from utils.prepare.label_names import Labels
from utils.prepare.lines import consume, lines
from utils.prepare.rows import Rows
from utils.prepare.writer import SPLITS, Writer


def prepare_attention_xml(
    folder: str | Path,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Read the text files of AttentionXML and LightXML.

    They are texts {train,test}_raw_texts.txt, or {train,test}_texts.txt where there are no raw
    ones, and {train,test}_labels.txt with the names of a point's labels, parted by blanks, in the
    same line.

    Label names, numbered by first appearance, serve as label texts.
    """
    source = Folder(folder)
    with Writer(out, "attention-xml", [folder], overwrite) as writer:
        labels = Labels(writer)
        rows = {
            split: _label_rows(source.find(f"{long}_labels.txt"), labels)
            for split, long in SPLITS.items()
        }
        for split, long in SPLITS.items():
            writer.put(f"Y.{split}", rows[split].csr(len(labels)), rows[split].read)
            path = source.first(f"{long}_raw_texts.txt", f"{long}_texts.txt")
            writer.copy_texts(path, f"{split}_X", len(rows[split]), f"line of {long}_labels.txt")
        labels.warn()
        return writer.finish(source)


def _label_rows(path: Path, labels: Labels) -> Rows:
    """Rows of label names parted by blanks."""
    rows = Rows(max)

    def store(line: str) -> None:
        names = line.split()
        rows.add([labels.id(name) for name in names], [1.0] * len(names))

    consume(path, lines(path), store)
    return rows
