"""Every shell and Python block of README and docs runs, on toys in place of data."""

import subprocess

import pytest

from tests import commands
from tests.commands import ROOT
from tests.pages.blocks import OWN_TEST, blocks, is_run, pages
from tests.pages.blocks import commands as commands_of
from tests.pages.sandbox import PLACEHOLDERS, Sandbox

LANGUAGES = ("", "sh", "bash", "python", "json", "yaml", "text", "bibtex")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp("pages") / "project")


def named(page):
    return page.relative_to(ROOT).as_posix()


def of(page, language):
    """Its blocks in a language."""
    if named(page) in OWN_TEST:
        return []
    return [block for block in blocks(page) if block.language == language]


@pytest.mark.parametrize("page", [page for page in pages() if of(page, "sh")], ids=named)
def test_commands_of_a_page_run(page, sandbox):
    for block in of(page, "sh"):
        for words in commands_of(block):
            if is_run(words):
                done = sandbox.run(tuple(words))
                assert done.returncode == 0, f"{named(page)}:{block.line}: {words}\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in pages() if of(page, "python")], ids=named)
def test_programs_of_a_page_run(page, sandbox):
    """Each page is one program, from its first block to its last."""
    sandbox.make(PLACEHOLDERS["RUN"])  # some look into a run
    program = sandbox.folder / f"{page.stem}_program.py"
    program.write_text("\n".join(block.text for block in of(page, "python")), encoding="utf-8")
    commands.run(program, folder=sandbox.folder)


@pytest.mark.parametrize("page", [page for page in pages() if of(page, "bash")], ids=named)
def test_scripts_for_other_machines_can_be_read(page):
    for block in of(page, "bash"):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_every_block_says_what_it_is():
    odd = [
        f"{named(page)}:{block.line}: {block.language}"
        for page in pages()
        for block in blocks(page)
        if block.language not in LANGUAGES
    ]
    assert not odd


def test_commands_stand_in_blocks_that_are_run():
    """No python command hides in a block that is none of code."""
    hidden = [
        f"{named(page)}:{block.line}: {line}"
        for page in pages()
        for block in blocks(page)
        if block.language in ("", "text")
        for line in block.text.splitlines()
        if line.startswith(("python ", "accelerate launch"))
    ]
    assert not hidden
