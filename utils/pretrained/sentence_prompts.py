"""The prompts that a folder of sentence-transformers puts before texts."""

from __future__ import annotations

import functools
import logging
from typing import Any

from utils.errors import InputError
from utils.pretrained.location import added_tokens
from utils.pretrained.sentence_files import WHOLE

log = logging.getLogger(__name__)
LABEL_PROMPTS = ("document", "passage", "corpus")  # SentenceTransformer.encode_document's order


def read_prompts(name: str, whole: dict[str, Any]) -> dict[str, str]:
    """Return the prompts of points and labels, as `prompt`, `label_prompt`; {} without a default.

    sentence-transformers puts the default before every text unless told otherwise. Prompts of a
    folder that has no default are named in the log.
    """
    prompts = whole.get("prompts") or {}
    default = whole.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(
            f"encoder '{name}': {WHOLE}: prompts must be a mapping of names to texts, got "
            f"{prompts!r}"
        )
    if default is None:
        if others := {key: text for key, text in prompts.items() if text}:
            _say_once(
                f"encoder '{name}' has prompts and no default among them, so none is used: "
                f"{', '.join(f'{k} {v!r}' for k, v in others.items())}; encoder.prompt and "
                "encoder.label_prompt set them"
            )
        return {}
    if default not in prompts:
        raise InputError(
            f"encoder '{name}': {WHOLE}: default_prompt_name is {default!r}, which is none of its "
            f"prompts: {', '.join(prompts) or 'it has none'}"
        )
    of_points = prompts[default]
    of_labels = next((prompts[key] for key in LABEL_PROMPTS if prompts.get(key)), of_points)
    if of_points or of_labels:
        _say_once(
            f"encoder '{name}': before every point's text stands {of_points!r}, before a label's "
            f"{of_labels!r}"
        )
    return {"prompt": of_points, "label_prompt": of_labels}


@functools.cache
def _say_once(message: str) -> None:
    """Log what is found again each time that an encoder's folder is looked at."""
    log.info(message)


def bag_prompt(prompt: str, tokenizer: Any) -> str:
    """Return the beginning of a bag's prompt that stands for special tokens, or nothing."""
    added, text = added_tokens(tokenizer)
    return text if added and prompt.startswith(text) else ""
