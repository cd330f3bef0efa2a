# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The blocks of code in the documentation, and what is said about testing each.

A line ``<!-- test: … -->`` before a block, which readers do not see, says

- ``parsed, WHY``: the commands are not run. Their programs have to accept the arguments, and the
  files and names of ours among them have to exist.
- ``module, TEST``: it is a module of Python that the file TEST runs.
- ``config BASE``: it is (part of) a config that inherits BASE.

Without one, a block of shell is run, in :file:`test_commands.py`'s small world.
"""

import re
from pathlib import Path
from typing import List, NamedTuple

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / 'docs'
CODE = ('shell', 'console', 'python')
# Output, references, and what Sphinx puts in itself.
TEXT = ('', 'text', 'bibtex')
DIRECTIVES = ('{toctree}', '{literalinclude}', '{command-output}', '{eval-rst}')


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page (str): Its file, from the root of the repository.
        line (int): Of its fence.
        language (str): What stands after the fence.
        text (str): Without the fences and without their indent.
        directive (str): Of the comment before it.
    """

    page: str
    line: int
    language: str
    text: str
    directive: str

    @property
    def place(self) -> str:
        return f'{self.page}:{self.line}'

    @property
    def how(self) -> str:
        """``run``, ``parsed``, ``module`` or ``config``."""
        how, rest = re.match(r'(\w*),? ?(.*)', self.directive).groups()
        if how == 'parsed' and rest or how == 'module' and (REPO / rest).is_file():
            return how
        if how == 'config' and re.fullmatch(r'mm\w+::\S+', rest):
            return how
        if self.directive or self.language == 'python':
            raise ValueError(f'{self.place}: cannot be tested as {self.directive!r}')
        return 'run'


def english() -> List[Path]:
    """All pages but the Chinese ones, in the order of their names."""
    pages = [p for p in sorted(DOCS.rglob('*.md')) if not {'_build', 'zh_cn'} & set(p.parts)]
    return [REPO / 'README.md', *pages]


def blocks(path: Path) -> List[Block]:
    """Of a page, in its order."""
    found, fence, directive = [], None, ''
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        if fence is None:
            opened = re.match(r'( *)(```+)(.*)', line)
            said = re.match(r' *<!-- test: (.*) -->$', line)
            if opened:
                fence = opened.groups(), number, []
            elif said:
                directive = said[1]
            elif line.strip() and directive:
                raise ValueError(f'{path}:{number}: a block has to follow `test: {directive}`')
        elif line.strip() == fence[0][1]:
            (indent, _, language), start, lines = fence
            text = '\n'.join(text[len(indent) :] for text in lines)
            page = path.relative_to(REPO).as_posix()
            found.append(Block(page, start, language.strip(), text, directive or ''))
            fence, directive = None, ''
        else:
            fence[2].append(line)
    if fence is not None:
        raise ValueError(f'{path}:{fence[1]}: the block does not end')
    return found
