"""A project folder with toys in place of data sets and encoders, where the pages' commands run."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import signal
import socket
import time
import urllib.request
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.recipes import Toys, cut, load, shipped
from tests import commands
from tests.commands import ROOT
from utils.config.config import to_yaml

USUAL = "configs/LF-DebianTitles-small/dexml.yaml"
PLACEHOLDERS = {"CONFIG": USUAL, "RUN": "Results/XMCKit/LF-DebianTitles-small/dexml"}
PREPARED = tuple("python -m utils.prepare jsonl --train mine.jsonl --out Datasets/Mine".split())
TEXTS = ["labela worda and labelb wordb", "labelc wordc", "labeld wordd and labelf worda"]
LABELS = ["labela worda", "labelc wordc", "labeld wordd"]


class Sandbox:
    """What lies in `folder`; runs are trained when a command names them.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        toys = Toys.make(folder)
        toys = Toys(Path("Datasets"), Path("Results"), toys.encoder)
        for path in shipped():
            written = folder / path.relative_to(ROOT)
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(to_yaml(cut(load(path), toys)), encoding="utf-8")
        for path in (ROOT / "configs").glob("presets"):
            (folder / "configs" / path.name).symlink_to(path)
        for path in (ROOT / "configs").glob("*.yaml"):
            (folder / "configs" / path.name).symlink_to(path)
        self._write_inputs()
        self.run = cache(self._run)

    def _write_inputs(self) -> None:
        """The files that users are said to have."""
        many = [(TEXTS[row % 3], LABELS[row % 3]) for row in range(60)]
        with open(self.folder / "tickets.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "body", "tags"])
            writer.writerows([f"T{n}", text, label] for n, (text, label) in enumerate(many))
        lines = [json.dumps({"text": text, "labels": [label]}) + "\n" for text, label in many]
        for name in ("mine.jsonl", "new.jsonl"):
            (self.folder / name).write_text("".join(lines), encoding="utf-8")
        (self.folder / "rows.jsonl").write_text(
            "".join(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(TEXTS)),
            encoding="utf-8",
        )
        (self.folder / "new.csv").write_bytes((self.folder / "tickets.csv").read_bytes())
        (self.folder / "queries.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        for name in ("new_labels.txt", "more.txt"):
            (self.folder / name).write_text("a new label\nanother\n", encoding="utf-8")

    def _run(self, words: tuple[str, ...]) -> commands.Finished:
        """Run a command as the pages have it; each is run once."""
        words = tuple(PLACEHOLDERS.get(word, word) for word in words)
        if words[2] != "utils.prepare":
            for word in words:
                self.make(word)
        if "train.py" in words and "--resume" not in words:
            words += ("--overwrite",)  # other pages have trained it too
        if words[0] == "accelerate":
            script = next(n for n, word in enumerate(words) if word.endswith(".py"))
            return commands.launch(2, *words[script:], folder=self.folder)
        assert words[0] == "python", f"no rule for {words[0]}"
        if words[1] == "serve.py":
            return self._served(words)
        if words[2] == "utils.prepare":  # a page that makes what another has made
            shutil.rmtree(self.folder / words[-1], ignore_errors=True)
        return commands.run(*words[1:], folder=self.folder)

    def _served(self, words: tuple[str, ...]) -> commands.Finished:
        """Start a service, and end it when it answers."""
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        service = commands.Command(*words[1:], "--port", port, folder=self.folder)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and service.returncode is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.05)
        service.send_signal(signal.SIGTERM)
        done = service.finish(60)
        ended = -signal.SIGTERM  # uvicorn answers what is in flight, then ends as it was asked to
        return replace(done, returncode=0) if done.returncode == ended else done

    def make(self, word: str) -> None:
        """Train the run, or prepare the data set, that a word names, if it is not there."""
        parts = Path(word).parts
        if parts[-1:] == ("Mine",) and not (self.folder / "Datasets" / "Mine").exists():
            self._run(PREPARED)
        if parts[:1] != ("Results",) or (self.folder / word).exists() or len(parts) < 4:
            return
        config = Path("configs", parts[2], f"{parts[3]}.yaml")
        if (self.folder / config).exists():
            self.run(("python", "train.py", str(config)))
