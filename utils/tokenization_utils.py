"""Text file -> ragged memory map of token ids, made once and reused.

    python utils/tokenization_utils.py --data-path Datasets/EURLex-4K/raw/Y.txt --tf-max-len 128 \\
        --tf-token-type bert-base-uncased

A token file is two arrays: flat ids (uint16 where the vocabulary fits, else int32) and int64
offsets. Nothing is padded on disk. Its name holds a hash of tokenizer and length; its JSON a hash
of the text it was made from.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if __name__ == "__main__":  # run as a file: the folder above holds the package `utils`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.commands import add_debug_option, command
from utils.console import show_anything
from utils.errors import InputError
from utils.files import written_whole
from utils.ragged import Ragged, offsets_of
from utils.text import check_text_file, check_unicode, iter_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LINES_AT_ONCE = 8192
TokenizerSource: TypeAlias = "str | Path | PreTrainedTokenizerBase"  # folder, hub id, or loaded


class Tokenizer:
    """A Hugging Face tokenizer set to one maximum length, as arrays in and out.

    Args:
        source: folder or hub id of a tokenizer, or a loaded one.
        max_len: longest text in tokens, special tokens and prompt included.
        prompt: put before every text.
    Raises:
        InputError: no room is left for a text.
    """

    def __init__(
        self,
        source: TokenizerSource,
        max_len: int,
        trust_remote_code: bool = False,
        prompt: str = "",
    ) -> None:
        if isinstance(source, (str, Path)):
            from utils.pretrained.location import load_tokenizer

            source = load_tokenizer(str(source), trust_remote_code)
        if max_len < 3:
            raise InputError(
                f"the longest text must have at least 3 tokens, two of them special; got {max_len}"
            )
        self.hf = source
        self.max_len = max_len
        self._fast = getattr(source, "backend_tokenizer", None)
        if self._fast is not None:
            self._cut()
            self._fast.no_padding()
        self.vocab_size = len(source)
        self.prompt = prompt
        # Of a text, with or without words: special ones, and the prompt's.
        self.num_special = source.num_special_tokens_to_add()
        if prompt:
            self.num_special = len(source(prompt)["input_ids"])
        if prompt and self.num_special >= max_len:
            raise InputError(
                f"the prompt {prompt!r} has {self.num_special} tokens, special ones included, and "
                f"texts are cut at {max_len}: no room is left for a text; raise data.max_len and "
                "data.label_max_len"
            )

    def _cut(self) -> None:
        """Set the length at which texts are cut, and the end: Tokenizers may share a backend."""
        assert self._fast is not None
        self._fast.enable_truncation(self.max_len, direction=self.hf.truncation_side)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the flat ids of n texts, and their lengths [n]."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        if self._fast is not None:
            self._cut()
            try:
                rows = [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts))]
            except TypeError:  # what is no valid Unicode is no text to it
                check_unicode(texts, "texts")
                raise
        else:
            rows = self.hf(list(texts), truncation=True, max_length=self.max_len)["input_ids"]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids: np.ndarray = np.fromiter(
            itertools.chain.from_iterable(rows), self.dtype, int(lengths.sum())
        )
        return ids, lengths

    @property
    def dtype(self) -> type:
        """The smallest that holds an id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.int32

    def fingerprint(self) -> str:
        """Hash everything that decides the ids: vocabulary, rules and length."""
        if self._fast is not None:
            self._cut()
            rules = self._fast.to_str()
        else:
            rules = json.dumps([type(self.hf).__name__, sorted(self.hf.get_vocab().items())])
        prompt = f"|{self.prompt}" if self.prompt else ""
        return hashlib.sha256(f"{rules}|{self.max_len}{prompt}".encode()).hexdigest()


def tokenize_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Ragged:
    """Tokenise a few texts, in memory."""
    return Ragged.of(*tokenizer(texts))


def tokenize_file(
    path: str | Path, tokenizer: Tokenizer, cache: str | Path, progress: bool = True
) -> Ragged:
    """Open the token file of `path`; make it if it is not up to date.

    Args:
        path: text file, one text a line.
        cache: folder for token files; created when missing.
    Raises:
        InputError: the text file is missing, empty or not UTF-8, naming file and line; nothing is
            left behind.
    """
    path = Path(path)
    check_text_file(path)
    stem = Path(cache) / f"{path.name}-{tokenizer.fingerprint()[:16]}"
    if not _is_current(stem, path):
        _write(stem, path, tokenizer, progress)
    info = json.loads(_with(stem, ".json").read_text())
    dtype = {"uint16": np.uint16, "int32": np.int32}[info["dtype"]]
    ids: np.ndarray = np.zeros(0, dtype)
    if info["tokens"]:  # an empty file cannot be mapped
        ids = np.memmap(_with(stem, ".ids"), dtype, "r", shape=(info["tokens"],))
    return Ragged(ids, np.load(_with(stem, ".offsets.npy"), mmap_mode="r"))


def _with(stem: Path, suffix: str) -> Path:
    return stem.parent / (stem.name + suffix)


def _text_hash(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _is_current(stem: Path, path: Path) -> bool:
    """Whether the token file was made from this very text.

    The text is hashed only if its time changed.
    """
    try:
        info = json.loads(_with(stem, ".json").read_text())
    except (OSError, ValueError):
        return False
    stat = path.stat()
    sizes = {
        ".ids": info["tokens"] * np.dtype(info["dtype"]).itemsize,
        ".offsets.npy": info["offsets_bytes"],
    }
    for suffix, size in sizes.items():
        file = _with(stem, suffix)
        if not file.is_file() or file.stat().st_size != size:
            return False
    if [stat.st_size, stat.st_mtime_ns] == info["stat"]:
        return True
    return stat.st_size == info["stat"][0] and _text_hash(path) == info["text_hash"]


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    lines = iter(lines)
    while chunk := list(itertools.islice(lines, LINES_AT_ONCE)):
        yield chunk


def _write_ids(
    to: Path,
    path: Path,
    tokenizer: Tokenizer,
    progress: bool,
) -> np.ndarray:
    """Write the flat ids of a text file; returns the lengths of its lines."""
    from utils.progress import ProgressBar

    bar = ProgressBar(None, f"tokenise {path.name}", "lines", scaled=True, hidden=not progress)
    lengths = []
    with open(to, "wb") as out, bar:
        for chunk in _chunks(iter_lines(path)):
            ids, lengths_of_chunk = tokenizer(chunk)
            out.write(ids.tobytes())
            lengths.append(lengths_of_chunk)
            bar.update(len(chunk))
    return np.concatenate(lengths)


def _write(
    stem: Path,
    path: Path,
    tokenizer: Tokenizer,
    progress: bool,
) -> None:
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{stem.parent}: cannot hold token files ({error.strerror}); set data.token_cache to "
            "a folder that can be written"
        ) from None
    stat = path.stat()
    with contextlib.ExitStack() as files:
        # Renamed in the reverse order: the JSON last, for it is what makes the other two count.
        partial = {
            suffix: files.enter_context(written_whole(_with(stem, suffix)))
            for suffix in (".json", ".offsets.npy", ".ids")
        }
        lengths = _write_ids(partial[".ids"], path, tokenizer, progress)
        with open(partial[".offsets.npy"], "wb") as out:
            np.save(out, offsets_of(lengths))
        info = {
            "text": path.name,
            "text_hash": _text_hash(path),
            "stat": [stat.st_size, stat.st_mtime_ns],
            "dtype": np.dtype(tokenizer.dtype).name,
            "tokens": int(lengths.sum()),
            "max_len": tokenizer.max_len,
            "offsets_bytes": partial[".offsets.npy"].stat().st_size,
        }
        partial[".json"].write_text(json.dumps(info))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-path", required=True, help="text file, one text a line")
    parser.add_argument(
        "--tf-max-len", type=int, default=32, help="longest text in tokens (default 32)"
    )
    parser.add_argument(
        "--tf-token-type", default="minilm", help="minilm, or a Hugging Face id or folder"
    )
    parser.add_argument(
        "--cache", help="folder of the token file (default: `tokens` beside the folder of the text)"
    )
    add_debug_option(parser)
    show_anything()
    options = parser.parse_args(arguments)
    path = Path(options.data_path)
    folder = path.resolve().parent
    if folder.name == "raw":
        folder = folder.parent
    cache = options.cache or folder / "tokens"
    with command(options.debug):
        tokenizer = Tokenizer(options.tf_token_type, options.tf_max_len)
        rows = tokenize_file(path, tokenizer, cache)
    print(f"{path}: {len(rows):,} lines, {len(rows.ids):,} tokens in {cache}")


if __name__ == "__main__":
    main()
