"""What `model/` holds beside the files of its method: a format version, and the labels' texts.

    model/method.json      method, number of labels, format version, hash of the label texts
    model/labels.txt       the labels' texts, one a line in the order of their ids, UTF-8; absent
                           where the data set has none
    model/label_ids.txt    the labels' own names, the same way, where the data set has some

So a run answers without its data set. Models of before there was a version have none of this: their
label texts are read from the data set.

Weights are safetensors and numpy arrays with plain names, none is pickled. Other programs read them
without this one, as the scores of a dual encoder over a bag of tokens (`encoder.residual: false`):

    head = load_file("RUN/model/head.safetensors")                         # safetensors.numpy
    ids = Tokenizer.from_file("RUN/model/tokenizer.json").encode(text).ids  # tokenizers
    x = (head["table"] * head["token_weights"])[ids].sum(0)                # [D]
    scores = np.load("RUN/model/label_embeddings.npy") @ (x / np.linalg.norm(x))  # [L]
    names = Path("RUN/model/labels.txt").read_text(encoding="utf-8").split("\\n")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.data.dataset import check_dataset_folder, labels_hash
from utils.data.label_names import LabelNames
from utils.data.label_texts import (
    LabelTexts,
    label_name_path,
    label_text_path,
    label_texts,
    numbered_labels,
)
from utils.errors import InputError
from utils.files import link_or_copy, same_bytes, share_disk, write_json
from utils.reading.input_files import present
from utils.reading.saved import read_facts
from utils.run.environment import check_labels
from utils.text import TextLines

FORMAT = 1  # of model/; grows when an older program could not read a newer model
LARGE = 1 << 16  # bytes of files that are worth a look whether they are there already
FACTS = "method.json"
LABELS = "labels.txt"
LABEL_IDS = "label_ids.txt"


class NewerModelError(InputError):
    """A model was written by a version of this program that is newer than this one."""


def model_format(model: Path) -> int:
    """Return the format version of a saved model, 0 where it is of before there were versions.

    Raises:
        NewerModelError: it is a version that this program does not know.
        InputError: it is no version.
    """
    path = model / FACTS
    found = read_facts(path).get("format", 0)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise InputError(f"{path}: format: expected a whole number, got {str(found)[:60]!r}")
    if found > FORMAT:
        raise NewerModelError(
            f"{model} has format {found}, written by a newer version of XMCKit; this one reads "
            f"formats up to {FORMAT}: update XMCKit"
        )
    return found


def complete_model(
    model: Path,
    data: Path,
    others: Iterable[Path] = (),
) -> None:
    """Add the format version and the labels' texts and names to a model that was just saved.

    Args:
        model: the folder, which nobody reads yet.
        data: folder of the data set.
        others: models that may hold the same files already, such as a frozen encoder: large ones
            take their disk space once, and so do texts.
    """
    others = [other for other in others if other.is_dir()]
    for name, source in ((LABELS, label_text_path(data)), (LABEL_IDS, label_name_path(data))):
        if present(source):
            _take(source, model / name, [other / name for other in others])
    facts = read_facts(model / FACTS)
    write_json(model / FACTS, {**facts, "format": FORMAT, "labels_hash": labels_hash(data)})
    for path in [path for path in model.rglob("*") if path.is_file()]:
        if path.stat().st_size >= LARGE and path.stat().st_nlink == 1:
            share_disk(path, [other / path.relative_to(model) for other in others])


def _take(
    source: Path,
    to: Path,
    copies: Iterable[Path],
) -> None:
    """Link one of the files that has the bytes of `source`, else copy that.

    It is the user's, who may write into it.
    """
    for copy in copies:
        if same_bytes(copy, source):
            link_or_copy(copy, to)
            return
    shutil.copyfile(source, to)


def models_near(folder: Path) -> list[Path]:
    """Return the models of a run folder, of its stages, and of the other stages of its run."""
    whole = folder.parent.parent if folder.parent.name == "stages" else folder
    return [folder / "model", *sorted(whole.glob("stages/*/model"))]


def label_texts_of_run(
    folder: Path,
    data: Path,
    num_labels: int,
) -> Sequence[str]:
    """Return the labels' texts by id, of a run's model; of an older one from its data set.

    Args:
        folder: of the run.
        data: folder of the data set, which only older models need.
    Raises:
        InputError: a file is missing or has another number of lines, or an older model's data set
            is gone or another one.
    """
    model = folder / "model"
    if not model_format(model):
        check_dataset_folder(data)
        check_labels(folder, data)
        return label_texts(data, num_labels)
    path = model / LABELS
    if not present(path):
        if read_facts(model / FACTS).get("labels_hash"):
            raise InputError(f"{path}: no such file; expected the texts of the model's labels")
        return numbered_labels(num_labels)
    lines = LabelTexts(path, model / LABEL_IDS)
    if len(lines) != num_labels:
        raise InputError(
            f"{path} has {len(lines):,} lines, expected one for each of {num_labels:,} labels"
        )
    return lines


def own_label_names(
    folder: Path,
    data: Path,
    num_labels: int,
) -> Sequence[str] | None:
    """Return the labels' own names by id, read as they are asked for; None where they have none.

    Args:
        folder: of the run.
        data: folder of the data set, which only older models need.
    Raises:
        InputError: there is another number of names.
    """
    model = folder / "model"
    path = model / LABEL_IDS if model_format(model) else label_name_path(data)
    if not present(path):
        return None
    names = TextLines(path)
    if len(names) != num_labels:
        raise InputError(
            f"{path} has {len(names):,} lines, expected one for each of {num_labels:,} labels"
        )
    return names


def label_names_of_run(
    folder: Path,
    data: Path,
    num_labels: int,
) -> LabelNames:
    """Return what the labels of a run's model are called; of an older one, from its data set.

    Args:
        folder: of the run.
        data: folder of the data set, which only older models need.
    Raises:
        InputError: as of `label_texts_of_run`.
    """
    model = folder / "model"
    if model_format(model):
        return LabelNames.read(model / LABEL_IDS, model / LABELS, num_labels)
    check_dataset_folder(data)
    check_labels(folder, data)
    return LabelNames.of_dataset(data, num_labels)
