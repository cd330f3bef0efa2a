# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A study in pieces that may be stopped or killed at any moment: each is run once, and leaves a
small result that is text."""

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import common  # benchmarks/common.py
import torch

from mmdense.utils.errors import InUseError, MMDenseError
from mmdense.utils.files import locked, write_text

REPO = Path(__file__).resolve().parents[2]
RESERVE = 30  # seconds in which a piece saves and ends
GRACE = 60  # after so many it is killed
# Of the children. Idle threads sleep; what is freed is kept for the next step (docs/benchmarks.md).
ENVIRONMENT = dict(
    OMP_WAIT_POLICY='PASSIVE', MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000'
)


@dataclass(frozen=True)
class Piece:
    """One run of one program.

    Attributes:
        id (str): ``kind/method/seedN``; its folder and its result are called so.
        config (Callable[[], dict]): All that its result depends on, besides what
            it needs; the same on every machine and for every seed.
        command (Callable): From the folder, which it prepares, and the products of
            what it needs, to what is to be run.
        read (Callable[[Path], dict]): What the result is to hold, None while the
            run is not over.
        text (str): File name of the config, below ``configs`` of the results.
        needs (Sequence[str]): Pieces that have to be there before.
        product (str): File in the folder that others need; '' without one.
        minutes (float): That it is expected to take.
        resumable (bool): Whether it goes on where it was stopped.
    """

    id: str
    config: Callable[[], dict]
    command: Callable[..., List[str]]
    read: Callable[[Path], Optional[dict]]
    text: str
    needs: Sequence[str] = ()
    product: str = ''
    minutes: float = 1.0
    resumable: bool = True


def digest(config: Any) -> str:
    """Twelve hexadecimal digits of a config's values."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _keyed(config: dict) -> dict:
    """Return a config as the keys of results have it.

    A hook that only writes events, and the new name of another hook, change no result.
    """
    hooks = config.get('default_hooks')
    if not hooks:
        return config
    hooks = {name: hook for name, hook in hooks.items() if name != 'events'}
    if 'momentum_twin' in hooks:
        hooks['momentum_twin'] = dict(hooks['momentum_twin'], type='MomentumTwinHook')
    return dict(config, default_hooks=hooks)


class Study:
    """Pieces, what has become of them, and the rest of them run.

    Args:
        pieces (Sequence[Piece]): Those that others need first.
        work_dir (Path): Of runs and weights.
        results (Path): Of the results, to be committed.
        order (Callable): From the results by id to ids, in which pieces are
            run; by default as they are.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        work_dir: Path,
        results: Path,
        order: Optional[Callable[[Dict[str, dict]], List[str]]] = None,
    ) -> None:
        self.pieces = {piece.id: piece for piece in pieces}
        self.work_dir, self.results_dir = Path(work_dir).absolute(), Path(results).absolute()
        self.order = order or (lambda results: list(self.pieces))
        self.stopped = ''  # why
        self._keys: Dict[str, str] = {}

    def key(self, id: str) -> str:
        """Return the key of all that a result depends on: equal keys, equal settings."""
        if id not in self._keys:
            piece = self.pieces[id]
            self._keys[id] = digest([_keyed(piece.config()), *map(self.key, piece.needs)])
        return self._keys[id]

    def folder(self, id: str) -> Path:
        """Return the folder of the run. Other settings have another folder."""
        return self.work_dir / id / self.key(id)

    def path(self, id: str) -> Path:
        """Return the path of the result."""
        return self.results_dir / f'{id}.json'

    def product(self, id: str) -> Path:
        """Return the path of the weights that others need."""
        return self.folder(id) / self.pieces[id].product

    def results(self, stale: bool = False) -> Dict[str, dict]:
        """By id: those of these settings; or with ``stale`` those of others."""
        found = {}
        for id in self.pieces:
            if self.path(id).is_file():
                result = json.loads(self.path(id).read_text(encoding='utf-8'))
                if (result['key'] != self.key(id)) == stale:
                    found[id] = result
        return found

    def missing(self) -> List[str]:
        """Return what is still to be run, in order: without a result, or without weights that
        others still need."""
        done = self.results()
        rest = [piece for piece in self.pieces.values() if piece.id not in done]
        needed = {need for piece in rest for need in piece.needs}
        return [
            id
            for id in self.order(done)
            if id not in done or (id in needed and not self.product(id).is_file())
        ]

    def state(self, id: str, missing: Sequence[str]) -> str:
        """done, stale, begun, waiting or pending; of which a stale one is pending, too."""
        if id not in missing:
            return 'done'
        if id in self.results(stale=True):
            return 'stale'
        if (self.folder(id) / 'sessions.json').is_file():
            return 'begun'
        return 'waiting' if any(need in missing for need in self.pieces[id].needs) else 'pending'

    def minutes(self, id: str) -> float:
        """Expected, less those that it has had."""
        had = sum(_sessions(self.folder(id)).values()) / 60 if self.pieces[id].resumable else 0
        return max(self.pieces[id].minutes - had, 0.1)

    def _least(self, id: str) -> float:
        """Minutes without which a run is not begun: most are for starting up."""
        piece = self.pieces[id]
        return min(piece.minutes, 1.5) if piece.resumable else piece.minutes

    def table(self) -> str:
        """Print the state of all experiments, and the expected time of the rest."""
        missing = self.missing()
        lines = []
        for id in self.order(self.results()):
            state = self.state(id, missing)
            rest = f'{self.minutes(id):5.1f} min' if id in missing else ''
            lines.append(f'{id:34} {state:8} {rest}'.rstrip())
        rest = sum(map(self.minutes, missing)) / 60
        lines.append(f'{len(missing)} of {len(self.pieces)} to be run, about {rest:.1f} hours')
        return '\n'.join(lines)

    def stop(self, why: str) -> None:
        """The running piece saves and ends, and no other is begun."""
        self.stopped = self.stopped or why

    def run(self, minutes: float = float('inf'), only: str = '*') -> List[str]:
        """Runs what is missing.

        Args:
            minutes (float): To be back in.
            only (str): A shell pattern of ids.

        Returns:
            List[str]: Those that failed, which are tried again the next time.
        """
        end = time.monotonic() + 60 * minutes
        tried = set()
        while not self.stopped:
            left = end - time.monotonic() - min(RESERVE, 60 * minutes / 4)
            todo = self.missing()
            ready = [
                id
                for id in todo
                if id not in tried
                and fnmatch(id, only)
                and not any(need in todo for need in self.pieces[id].needs)
                and 60 * self._least(id) < left
            ]
            if not ready:
                break
            for id in ready:
                try:
                    self._run(self.pieces[id], time.monotonic() + left)
                except InUseError:  # by another study, which runs beside this one
                    continue
                except (MMDenseError, OSError) as error:
                    print(f'{id}: {error}', flush=True)
                tried.add(id)
                break
            else:
                time.sleep(1)
        missing = self.missing()
        return [id for id in tried if id in missing and not self.stopped]

    def _run(self, piece: Piece, end: float) -> None:
        folder = self.folder(piece.id)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(str(folder / 'lock')):
            found = piece.read(folder)  # by a program that outlived the study
            if found is None:
                log = folder / 'log.txt'
                what = 'goes on' if _sessions(folder) else 'starts'
                about = f'{what}, about {self.minutes(piece.id):.0f} min'
                print(f'{datetime.now():%H:%M} {piece.id}: {about}; {log}', flush=True)
                products = [self.product(need) for need in piece.needs]
                code = self._call(piece.command(folder, *products), folder, log, end)
                found = piece.read(folder)
                if found is None and not self.stopped:
                    raise MMDenseError(f'failed with exit code {code}: {_last_line(log)} ({log})')
            if found is not None:
                self._write(piece, folder, found)

    def _call(self, command, folder: Path, log: Path, end: float) -> int:
        sessions = _sessions(folder)
        name, start, written = datetime.now(timezone.utc).isoformat(), time.monotonic(), 0.0
        paths = [str(REPO), os.environ.get('PYTHONPATH')]
        environment = dict(ENVIRONMENT, **os.environ)
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        with open(log, 'a', encoding='utf-8') as file:
            process = subprocess.Popen(
                command,
                cwd=REPO,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the study, which passes it on
            )
            told = None
            while process.poll() is None:
                now = time.monotonic()
                if now > end:
                    self.stop('the time is up')
                if self.stopped and told is None:
                    told = now
                    process.send_signal(signal.SIGTERM)
                elif told is not None and now > told + GRACE:
                    os.killpg(process.pid, signal.SIGKILL)
                if now - start > written + 5:  # what a killed study has taken counts, too
                    written = now - start
                    _put(folder / 'sessions.json', dict(sessions, **{name: round(written, 1)}))
                time.sleep(0.1)
        seconds = round(time.monotonic() - start, 1)
        _put(folder / 'sessions.json', dict(sessions, **{name: seconds}))
        return process.returncode

    def _write(self, piece: Piece, folder: Path, found: dict) -> None:
        config = piece.config()
        _put(self.results_dir / 'configs' / piece.text, config)
        sessions = _sessions(folder)
        result = dict(
            id=piece.id,
            key=self.key(piece.id),
            config=f'configs/{piece.text}',
            config_digest=digest(config),
            date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
            minutes=round(sum(sessions.values()) / 60, 2),
            sessions=len(sessions),
            commit=commit(),
            machine=machine(),
            **found,
        )
        _put(self.path(piece.id), result)
        print(f'{datetime.now():%H:%M} {piece.id}: done, {result["metrics"]}', flush=True)


def machine() -> dict:
    """Return the machine of a result: processor, threads, versions."""
    found = common.machine()
    for name, distributions in (
        ('mmdet', ['onedl-mmdetection', 'mmdet']),
        ('mmseg', ['onedl-mmsegmentation', 'mmsegmentation']),
    ):
        for distribution in distributions:
            try:
                found['versions'][name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    found['threads'] = torch.get_num_threads()
    return found


def commit() -> str:
    """Return the commit of this checkout, -dirty where code differs from it, or the version."""

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', *words], cwd=REPO, capture_output=True, text=True
        ).stdout.strip()

    code = ['mmdense', 'tools', 'configs', 'benchmarks', ':!benchmarks/*/results/*', ':!*.md']
    dirty = git('status', '--porcelain', '--untracked-files=no', '--', *code)
    found = git('describe', '--always')
    return found + '-dirty' * bool(dirty) if found else metadata.version('mmdense')


def _sessions(folder: Path) -> Dict[str, float]:
    """Seconds that each took, by its start."""
    path = folder / 'sessions.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def _put(path: Path, content: Any) -> None:
    """Whole or not at all."""
    if not isinstance(content, str):
        content = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
        content = re.sub(r'\[\s+([^\s,\]]+),\s+([^\s,\]]+)\s+\]', r'[\1, \2]', content)  # points
    write_text(str(path), content)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors='replace').splitlines()]
    return next((line[:300] for line in reversed(lines) if line), 'no output')


def pairs(options: Dict[str, Any]) -> Tuple[str, ...]:
    """Format settings for ``--cfg-options``."""
    return tuple(f'{key}={str(value).replace(" ", "")}' for key, value in options.items())
