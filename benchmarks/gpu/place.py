"""The folder that `prepare` writes and `run` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.sizes import FULL, TINY, Sizes
from utils.config.config import Config, build_config, merge_sections, parse_overrides
from utils.errors import InputError

Values = Mapping[str, Mapping[str, Any]]  # section of a config -> key -> value


@dataclass(frozen=True)
class Place:
    """A prepared folder.

    Attributes:
        tiny: its sizes are those of a dry run.
        words: of the command line, keys of the configs whose steps are timed.
    """

    folder: Path
    tiny: bool
    words: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, words: Sequence[str] = ()) -> Place:
        """InputError for a folder that `prepare` has not finished."""
        if not (folder / "made.json").is_file():
            raise InputError(
                f"{folder}: no made.json, which `python -m benchmarks.gpu prepare {folder}` writes"
            )
        facts = json.loads((folder / "made.json").read_text())
        return cls(folder, facts["tiny"], tuple(words))

    def close(self) -> None:
        """Say that everything has been written."""
        (self.folder / "made.json").write_text(json.dumps({"tiny": self.tiny}) + "\n")

    @property
    def sizes(self) -> Sizes:
        return TINY if self.tiny else FULL

    @property
    def expected_file(self) -> Path:
        """What a CPU has computed: {case: what it came to}."""
        return self.folder / "expected.json"

    @property
    def data(self) -> Path:
        """Folder of the data sets."""
        return self.folder / "Datasets"

    def encoder(self, name: str) -> Path:
        return self.folder / "encoders" / name

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name.replace(" ", "-").replace(",", "")

    def config(
        self,
        name: str,
        *parts: Values,
        stages: Sequence[Mapping[str, Any]] = (),
        words: Sequence[str] = (),
    ) -> Config:
        """A config of a run of this name: usual values, and each part over those before it.

        Args:
            words: `--section.key value`, over all parts.
        Raises:
            ConfigError: as for any config.
        """
        usual: Values = {
            "data": {"root": str(self.data)},
            "run": {
                "dir": str(self.run_folder(name)),
                "tensorboard": False,
                "keep_last": True,  # what is compared
                "save_minutes": 999,
                "threads": 1 if self.tiny else None,  # more would wait for each other
            },
        }
        sections = merged(usual, *parts)
        origin: dict[str, str] = {}
        merge_sections(sections, parse_overrides(words), "command line", origin)
        return build_config(sections, origin, stages)


def merged(*parts: Values) -> dict[str, dict[str, Any]]:
    """Sections, later ones over earlier ones key by key."""
    result: dict[str, dict[str, Any]] = {}
    for part in parts:
        for section, values in part.items():
            result.setdefault(section, {}).update(values)
    return result
