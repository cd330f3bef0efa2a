# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Links, translations, and what pages take from the source."""

import ast
import re
import subprocess
import sys

import pytest
from pages import CODE, DIRECTIVES, DOCS, REPO, TEXT, blocks, english

CHINESE = sorted((DOCS / 'zh_cn').glob('*.md')) + [REPO / 'README_zh-CN.md']
ALL = [*english(), *CHINESE]


def name(path):
    return path.relative_to(REPO).as_posix()


def anchors(path):
    """Of headings, as GitHub and MyST make them."""
    text = re.sub(r'(?ms)^ *```.*?^ *```', '', path.read_text(encoding='utf-8'))
    found = set()
    for heading in re.findall(r'(?m)^#+ (.*)$', text):
        heading = re.sub(r'[^\w\- ]', '', heading.strip().lower().replace('`', ''))
        found.add(heading.replace(' ', '-'))
    return found


@pytest.mark.parametrize('path', ALL, ids=name)
def test_links_lead_somewhere(path):
    text = re.sub(r'(?ms)^ *```.*?^ *```', '', path.read_text(encoding='utf-8'))
    for link in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`\n]*`', '', text)):
        if re.match(r'https?:|mailto:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f'{name(path)}: {link} does not exist'
        if anchor:
            assert anchor in anchors(target), f'{name(path)}: no heading for {link}'


@pytest.mark.parametrize('path', ALL, ids=name)
def test_no_block_escapes(path):
    for block in blocks(path):
        kind = block.language.split()[0] if block.language else ''
        known = kind in CODE or kind in TEXT or kind in DIRECTIVES
        assert known, f'{block.place}: {block.language!r} is not known to the tests'
        assert block.how if kind in CODE else block.directive in ('', 'parsed'), block.place


def code_of(path):
    """Blocks of code, less remarks in them."""
    code = [b.text for b in blocks(path) if b.language in CODE]
    lines = [re.sub(r'(^|\s+)# .*', '', text).rstrip().splitlines() for text in code]
    return [[line.rstrip() for line in text if line.strip()] for text in lines]


@pytest.mark.parametrize('path', CHINESE, ids=name)
def test_translations_have_the_same_code(path):
    original = REPO / 'README.md' if path.parent == REPO else DOCS / path.name
    ours, theirs = code_of(path), code_of(original)
    if path.name == 'faq.md':  # the first five questions
        assert len(re.findall('(?m)^## ', path.read_text(encoding='utf-8'))) == 5
        theirs = theirs[: len(ours)]
    assert ours == theirs


def test_what_is_included_is_there():
    """``make docs`` would tell too, but takes Sphinx."""
    included = 0
    for path in english():
        for block in blocks(path):
            if not block.language.startswith('{literalinclude}'):
                continue
            included += 1
            source = path.parent / block.language.split()[1]
            options = dict(re.findall(r'(?m)^:([\w-]+): *"?(.*?)"?$', block.text))
            text = source.read_text(encoding='utf-8')
            node = ast.parse(text)
            for part in options['pyobject'].split('.'):
                parts = [n for n in node.body if getattr(n, 'name', None) == part]
                assert parts, f'{block.place}: {source.name} has no {options["pyobject"]}'
                node = parts[0]
            text = ast.get_source_segment(text, node)
            for option in ('start-at', 'end-at', 'end-before'):
                assert options.get(option, '') in text, f'{block.place}: {option}'
    assert included > 10


def test_every_command_has_a_section():
    from mmdense.cli.main import COMMANDS

    page = (DOCS / 'cli.md').read_text(encoding='utf-8')
    assert re.findall(r'(?m)^## (\w+)', page) == [command.name for command in COMMANDS]


def test_builds_without_warnings(repo):
    """And what it built asks for nothing from elsewhere."""
    done = subprocess.run(
        ['make', 'docs', f'MMDENSE_PYTHON={sys.executable}'],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (repo / 'docs' / '_build' / 'html').rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//', text)
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//', text)
        assert not loaded, f'{page}: {loaded}'
