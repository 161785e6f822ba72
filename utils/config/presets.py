"""The presets: configs for any data set, `configs/presets/NAME.yaml`.

preset_path("best")     # its file
"""

from __future__ import annotations

from pathlib import Path

from utils.config.options import nearest
from utils.config.yaml_text import shown_word
from utils.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs" / "presets"
PRESETS = {  # in the order in which one tries them, and what each is good at
    "tree": "linear trees on TF-IDF: seconds to minutes on a CPU; exact words and frequent labels",
    "encoder": "one encoder for texts and label texts: rare labels, and new ones by their text",
    "classifiers": "an encoder, then a classifier a label: one small model that is fast to ask",
    "index": "a learned index of clusters: queries whose cost hardly grows with the labels",
    "best": "all that the data allows, fused: the best scores, for the most time",
}


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: there is none of this name; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{shown_word(name)}'{nearest(name, list(PRESETS))}")
    return FOLDER / f"{name}.yaml"
