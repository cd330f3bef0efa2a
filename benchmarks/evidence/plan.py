# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The pieces of a study, from its config."""

import json
import sys
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from mmengine.config import Config
from pieces import REPO, Piece, Study, pairs

from mmdense.apis import planning
from mmdense.apis.report.charts import thin
from mmdense.apis.report.run_log import read_run
from mmdense.apis.transfer import RANDOM, find_tasks
from mmdense.checkpoints import convert_checkpoint
from mmdense.datasets import UnlabeledDataset
from mmdense.utils.errors import DataError
from mmdense.utils.files import write_text

HERE = Path(__file__).resolve().parent
MOST = 200  # points of a curve
START = '-0it'  # a method after 0 iterations


def make_study(cfg: Config, work_dir: Path, results: Path, data_root: Path) -> Study:
    """Return the study: all its experiments, and the order in which they run.

    Args:
        cfg (Config): configs/cpu.py, or one that inherits it.
        work_dir (Path): Of runs and weights.
        results (Path): Of the results.
        data_root (Path): The folder of the images.
    """
    plan = _Plan(cfg, results.absolute(), data_root.absolute())
    pieces = []
    for seed in cfg.seeds:
        methods = ['random', *cfg.methods]
        pieces += [plan.start(method, seed) for method in methods]
        pieces += [plan.pretrain(method, seed) for method in cfg.methods]
        methods += [f'{method}{START}' for method in cfg.methods]
        pieces += [plan.frozen(method, seed) for method in methods]
        for name, task in cfg.tasks.items():
            for few, method in product((True, False), methods):
                if not method.endswith(START) or (few and task.get('controls')):
                    pieces.append(plan.transfer(name, few, method, seed))
        for method, ours in (cfg.get('small') or {}).items():
            pieces.append(plan.pretrain(method, seed))
            if ours.get('frozen'):
                pieces.append(plan.frozen(method, seed))
            pieces += [plan.transfer(ours.task, few, method, seed) for few in (True, False)]
    return Study(pieces, work_dir, results, lambda found: order(cfg, found))


def order(cfg: Config, results: Dict[str, dict]) -> List[str]:
    """Order a study that may end anywhere: each step for all methods before the next one.

    For each seed: weights, frozen features, then the tasks, first with few
    labels; of a task with ``best`` the baselines and so many dense methods;
    then small data; then controls, and what was left out.
    """
    ids = []
    for seed in cfg.seeds:
        first, later = [], []
        methods = ['random', *cfg.methods]
        starts = [f'{method}{START}' for method in cfg.methods]
        first += [f'start/{method}/seed{seed}' for method in methods]
        first += [f'pretrain/{method}/seed{seed}' for method in cfg.methods]
        first += [f'frozen/{method}/seed{seed}' for method in [*methods, *starts]]
        for name, task in cfg.tasks.items():
            chosen = methods
            if task.get('best'):
                chosen = ['random', 'mocov2', *best(cfg, results)[: task.best]]
            for kind in (_few(cfg, name), name):
                rest = [method for method in methods if method not in chosen]
                rest += starts if task.get('controls') and kind != name else []
                first += [f'{kind}/{method}/seed{seed}' for method in chosen]
                later += [f'{kind}/{method}/seed{seed}' for method in rest]
        for method, ours in (cfg.get('small') or {}).items():
            kinds = ['pretrain', *(['frozen'] if ours.get('frozen') else []), _few(cfg, ours.task)]
            first += [f'{kind}/{method}/seed{seed}' for kind in kinds]
            later.append(f'{ours.task}/{method}/seed{seed}')
        ids += first + later
    return ids


def best(cfg: Config, results: Dict[str, dict]) -> List[str]:
    """The dense methods, those first that are best with few labels at the task that all do."""
    name = next(iter(cfg.tasks))
    metric = next(iter(cfg.tasks[name].metrics))
    dense = [method for method in cfg.methods if method != 'mocov2']

    def score(method: str) -> float:
        found = [r for r in results.values() if r['id'].startswith(f'{_few(cfg, name)}/{method}/')]
        return -sum(r['metrics'][metric] for r in found) / len(found) if found else float('inf')

    return sorted(dense, key=score)


def _few(cfg: Config, name: str) -> str:
    """The kind of a task with few labels: camvid10."""
    return f'{name}{cfg.share}'


def every(names: List[str], share: int, seed: int) -> List[str]:
    """``share`` per cent, evenly spaced; another seed takes their neighbours."""
    step = round(100 / share)
    return sorted(names)[seed % step :: step]


class _Plan:
    def __init__(self, cfg: Config, results: Path, data: Path) -> None:
        self.cfg, self.results, self.data = cfg, results, data
        # many pieces have the same
        for name in ('count', 'pretraining', 'evaluating', 'finetuning'):
            setattr(self, name, lru_cache(maxsize=None)(getattr(self, name)))

    # -------------------------------------------------------------------------------- pretraining

    def images(self, method: str) -> int:
        """Return the number of images of the pretraining."""
        ours = self.ours(method)
        if ours.get('names'):
            return len(_names(self.data / ours.names))
        return self.count(tuple(ours.images))

    def count(self, folders: Tuple[str, ...]) -> int:
        """Images in folders."""
        return len(UnlabeledDataset(data_root=str(self.data), data_prefix=list(folders)))

    def ours(self, method: str) -> Config:
        """The study's settings of pretraining."""
        small = self.cfg.get('small') or {}
        return Config(dict(self.cfg.pretrain.to_dict(), **small.get(method, dict(method=method))))

    def pretraining(
        self, method: str, seed: int = 0, data: str = 'data', lists: str = 'lists', init: str = ''
    ) -> Config:
        """The config that `mmdense pretrain` would write, by the same rules."""
        ours = self.ours(method)
        count = self.images(method)
        if ours.method in planning.METHODS:
            recipe = planning.read_recipe(ours.method)
        else:
            recipe = Config.fromfile(str(HERE / 'configs' / f'{ours.method}_r50_coco.py'))
        if ours.get('start'):
            init = init or 'backbone.pth'
        options = planning.Options(
            method=ours.method,
            backbone=ours.backbone,
            epochs=ours.epochs,
            batch_size=ours.batch_size,
            workers=ours.workers,
            size=ours.size,
            seed=seed,
            init=init or None,
            init_whole=False,
        )
        dataset = dict(data_root=data, data_prefix=list(ours.images))
        if ours.get('names'):
            dataset.update(data_prefix=ours.images[0], ann_file=f'{lists}/{method}.txt')
        images = planning.Images(dataset, count, ours.size)
        half = 'bfloat16' if ours.device == 'cuda' else ''
        machine = planning.Machine(ours.device, ours.device, 1, 16 * 2**30, 2, half)
        network = planning.survey_network(recipe, ours.backbone, ours.size)
        settings = planning.derive_settings(images, machine, network, recipe, options)
        for setting in settings:
            if setting.name in ours.without:
                continue
            for key, value in setting.config.items():
                where = 'train_dataloader.dataset.' if key.startswith('pipeline.') else ''
                recipe.merge_from_dict({where + key: value})
        if ours.evaluation:
            evaluation = Config.fromfile(str(REPO / 'configs' / '_base_' / 'evaluation_camvid.py'))
            evaluation = evaluation.default_hooks.evaluation
            evaluation.update(ours.evaluation)
            evaluation.data.data_root = f'{data}/camvid'
            recipe.default_hooks.evaluation = evaluation
        recipe.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1)
        recipe.default_hooks.logger.interval = 5
        recipe.merge_from_dict(dict(ours.get('options') or {}))
        for schedule in recipe.param_scheduler:  # results name the lengths that recipes leave out
            if schedule.type == 'CosineAnnealingLR':
                schedule.setdefault('begin', 0)
                schedule.setdefault('end', recipe.train_cfg.max_epochs)
                schedule.setdefault('T_max', schedule.end - schedule.begin)
        recipe.number_of_images = count
        for unread in ('train_pipeline', 'view_pipeline', 'view_pipelines', 'patch_pipeline'):
            recipe.pop(unread, None)
        return recipe

    def pretrain(self, method: str, seed: int) -> Piece:
        ours = self.ours(method)

        def command(folder: Path, *init: Path) -> List[str]:
            config, lists = folder / 'config.py', self.results / 'lists'
            if ours.get('names'):
                names = ''.join(f'{name}.jpg\n' for name in _names(self.data / ours.names))
                write_text(str(lists / f'{method}.txt'), names)
            made = self.pretraining(method, seed, str(self.data), str(lists), *map(str, init))
            write_text(str(config), made.pretty_text)
            return _python('tools/train.py', config, '--work-dir', folder / 'run', '--resume')

        def read(folder: Path) -> Optional[dict]:
            run, epochs = folder / 'run', self.pretraining(method).train_cfg.max_epochs
            last = run / f'epoch_{epochs}.pth'
            if not last.is_file():
                return None
            if not (run / 'backbone.pth').is_file():  # mmpretrain's
                convert_checkpoint(str(last), str(run / 'backbone.pth'))
            log = read_run(str(run))
            batch = log.batch_size
            seen = epochs * (self.images(method) // batch) * batch
            metrics = {_bare(name): float(c.values[-1]) for name, c in log.evaluation.items()}
            return dict(
                images=self.images(method),
                images_seen=seen,
                metrics=dict(loss=_round(log.train['loss'].values[-1]), **metrics),
                curves=_curves(log, ['loss']),
                seconds_a_step=_round(float(_median(log.train['time'].values))),
            )

        return Piece(
            f'pretrain/{method}/seed{seed}',
            lambda: self.pretraining(method).to_dict(),
            command,
            read,
            f'pretrain-{method}.json',
            needs=(f'pretrain/{ours.start}/seed{seed}',) if ours.get('start') else (),
            product='run/backbone.pth',
            minutes=ours.minutes.get(ours.method, 30),
        )

    def start(self, method: str, seed: int) -> Piece:
        """Weights after 0 iterations."""

        def config(seed: int = 0, data: str = 'data') -> Config:
            if method != 'random':
                return self.pretraining(method, seed, data)
            source = self.pretraining(self.cfg.methods[0], seed, data)
            depth = source.model.backbone.depth
            evaluation = source.default_hooks.evaluation
            return Config(
                dict(
                    model=dict(type='mmpretrain.ResNet', depth=depth, init_cfg=RANDOM),
                    default_hooks=dict(evaluation=evaluation),
                    randomness=dict(seed=seed),
                )
            )

        def command(folder: Path) -> List[str]:
            path = folder / 'config.py'
            write_text(str(path), config(seed, str(self.data)).pretty_text)
            return _python(HERE / 'start.py', path, folder / 'backbone.pth')

        def read(folder: Path) -> Optional[dict]:
            made = (folder / 'backbone.pth').is_file()
            return dict(images_seen=0, metrics={}) if made else None

        return Piece(
            f'start/{method}/seed{seed}',
            lambda: config().to_dict(),
            command,
            read,
            'start-random.json' if method == 'random' else f'pretrain-{method}.json',
            product='backbone.pth',
            minutes=0.7,
            resumable=False,
        )

    # --------------------------------------------------------------------------------- downstream

    def _needs(self, method: str, seed: int) -> str:
        if method == 'random' or method.endswith(START):
            return f'start/{method[: -len(START)] if method.endswith(START) else method}/seed{seed}'
        return f'pretrain/{method}/seed{seed}'

    def evaluating(self) -> dict:
        """Return the arguments of tools/evaluate_features.py."""
        cfg = Config.fromfile(str(REPO / self.cfg.frozen.config))
        cfg = Config(cfg.default_hooks.evaluation)
        cfg.merge_from_dict(dict(self.cfg.frozen.options))
        return cfg.to_dict()

    def frozen(self, method: str, seed: int) -> Piece:
        ours = self.cfg.frozen
        need = self._needs(method, seed)

        def command(folder: Path, weights: Path) -> List[str]:
            return _python(
                *('tools/evaluate_features.py', f'{method}={weights}', '--data', ours.config),
                *('--data-root', self.data / ours.data_root, '--out', folder / 'result.json'),
                *('--cfg-options', *pairs(ours.options)),
            )

        def read(folder: Path) -> Optional[dict]:
            path = folder / 'result.json'
            return dict(metrics=json.loads(path.read_text())[method]) if path.is_file() else None

        return Piece(
            f'frozen/{method}/seed{seed}',
            self.evaluating,
            command,
            read,
            'frozen.json',
            needs=(need,),
            minutes=ours.minutes,
            resumable=False,
        )

    def transferring(self, name: str, few: bool, seed: int = 0, lists: str = 'lists') -> dict:
        """Return the changes in the config of a task."""
        task = self.cfg.tasks[name]
        options = dict(task.options, **{'randomness.seed': seed + task.get('seed', 0)})
        if few:
            path = f'{lists}/seed{seed}/{_few(self.cfg, name)}.txt'
            options['train_dataloader.dataset.ann_file'] = path
        return options

    def finetuning(self, name: str, few: bool) -> dict:
        """The config of a task."""
        cfg = Config.fromfile(find_tasks()[self.cfg.tasks[name].task])
        cfg.merge_from_dict(self.transferring(name, few))
        for node in (cfg, cfg.model.backbone):  # the environment's
            node.pop('checkpoint', None)
            node.pop('init_cfg', None)
        return dict(cfg.to_dict(), share=self.cfg.share if few else 100)

    def transfer(self, name: str, few: bool, method: str, seed: int) -> Piece:
        ours = self.cfg.tasks[name]
        kind = _few(self.cfg, name) if few else name
        need = self._needs(method, seed)

        def command(folder: Path, weights: Path) -> List[str]:
            lists = self.results / 'lists'
            if few:
                names = every(_names(self.data / ours.train), self.cfg.share, seed)
                write_text(str(lists / f'seed{seed}' / f'{kind}.txt'), '\n'.join(names) + '\n')
            options = self.transferring(name, few, seed, str(lists))
            return _python(
                *('tools/transfer.py', f'weights={weights}', '--to', ours.task),
                *('--work-dir', folder, '--data-root', self.data),
                *('--cfg-options', *pairs(options)),
            )

        def read(folder: Path) -> Optional[dict]:
            run = folder / 'weights' / ours.task
            if not (run / 'result.json').is_file():
                return None
            found = json.loads((run / 'result.json').read_text())['metrics']
            log, scale = read_run(str(run)), 1 if ours.percent else 100
            tested = (run / 'test.log').read_text(encoding='utf-8', errors='replace')
            return dict(
                metrics={
                    metric: round(found[key] * scale, 2) for metric, key in ours.metrics.items()
                },
                classes={
                    name: round(value * scale, 2)
                    for name, value in by_class(tested, ours.by_class).items()
                },
                curves=_curves(log, ['loss']),
                seconds_a_step=_round(float(_median(log.train['time'].values))),
            )

        return Piece(
            f'{kind}/{method}/seed{seed}',
            lambda: self.finetuning(name, few),
            command,
            read,
            f'{kind}.json',
            needs=(need,),
            minutes=ours.minutes,
        )


def by_class(log: str, column: str) -> Dict[str, float]:
    """Read a column of the tables of classes that mmdet and mmseg print when testing, mean of the
    tables (mmdet prints one for each IoU)."""
    found: Dict[str, List[float]] = {}
    heads: List[str] = []
    for line in log.splitlines():
        if not line.startswith('|'):
            continue
        cells = [cell.strip() for cell in line.strip('| ').split('|')]
        if column in cells:
            heads = cells
        elif heads and len(cells) == len(heads) and cells[heads.index(column)]:
            found.setdefault(cells[0], []).append(float(cells[heads.index(column)]))
    found.pop('mAP', None)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _names(path: Path) -> List[str]:
    """Return the names of images without endings: of a folder, or the lines of a list."""
    if path.is_dir():
        return [file.stem for file in path.iterdir()]
    if not path.is_file():
        raise DataError(f'there is no {path}: name with --data-root the folder that has it')
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def _curves(log, names: List[str]) -> Dict[str, List[List[float]]]:
    """Return some values of training and all of evaluations: [step, value], at most 200."""
    found = {name: log.train[name] for name in names if name in log.train}
    found.update({_bare(name): curve for name, curve in log.evaluation.items()})
    curves = {}
    for name, curve in found.items():
        steps, values = thin(curve.steps, curve.values, MOST)[:2]
        curves[name] = [[_round(s), _round(v)] for s, v in zip(steps.tolist(), values.tolist())]
    return curves


def _bare(name: str) -> str:
    """Without ``eval/``."""
    return name.split('/')[-1]


def _round(value: float) -> float:
    return float(f'{value:.5g}')


def _median(values) -> float:
    return sorted(values.tolist())[len(values) // 2]


def _python(*words) -> List[str]:
    return [sys.executable, *map(str, words)]
