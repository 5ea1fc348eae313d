"""Runs every `python` block of the documentation and the READMEs as a test.

Each document is one story: its blocks share names, and run in a folder of their own.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

_STACK = "_leave"


def setup(namespace):
    stack = ExitStack()
    namespace[_STACK] = stack
    folder = stack.enter_context(TemporaryDirectory())
    stack.callback(os.chdir, Path.cwd())
    os.chdir(folder)


def teardown(namespace):
    namespace[_STACK].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    excludes=["changes/*.md", ".venv/*", "docs/reference/members/*.md", "**/package_data/*"],
    setup=setup,
    teardown=teardown,
).pytest()
