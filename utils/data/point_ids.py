"""The ids that a user's rows have of their own: raw/trn_ids.txt and raw/tst_ids.txt, one a line.

`python -m utils.prepare` writes them where it is told of a column of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.reading.input_files import present
from utils.text import TextLines, count_lines


def ids_beside(texts: Path) -> Sequence[str] | None:
    """Return the ids of the rows of raw/trn_X.txt or raw/tst_X.txt; None where they have none.

    Args:
        texts: that file, or any other, which has none.
    Raises:
        InputError: there are not as many as texts.
    """
    if texts.name not in ("trn_X.txt", "tst_X.txt"):
        return None
    path = texts.with_name(texts.name.replace("_X", "_ids"))
    if not present(path):
        return None
    ids = TextLines(path)
    count = count_lines(texts)
    if len(ids) != count:
        raise InputError(
            f"{path} has {len(ids):,} lines, expected one for each of {count:,} texts of {texts}"
        )
    return ids
