"""What mkdocs adds to the pages: every key of the config, as the program knows them."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from utils.config.config import describe


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add config-keys.md, made of the sections' own descriptions."""
    page = f"# Keys\n\n`python -m utils.config` prints the same.\n\n```text\n{describe([])}\n```\n"
    files.append(File.generated(config, "config-keys.md", content=page))
    return files
