# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compare small detectors on BCCD: from pretraining of the whole detector, and from its backbone.

    python benchmarks/evidence/detectors.py --list           # what there is to run, and its state
    python benchmarks/evidence/detectors.py --minutes 60     # goes on where it was stopped
    python benchmarks/evidence/detectors.py --page           # writes docs/detectors.md

A ResNet-18 of half the width is pretrained with DenseCL. UP-DETR and DETReg pretrain a detector
with 2 + 2 layers on that frozen backbone, without labels, on the task's own training images. Then
each detector is fine-tuned for the same iterations, once from the pretrained detector and once from
DenseCL's backbone alone; Pair DETR is compared with Conditional DETR, both from the backbone.
Validation's AP is measured on the way, the test split once at the end. DETReg's proposals are a
file, which OpenCV's contrib modules make:

    python tools/make_proposals.py data/bccd/JPEGImages work_dirs/bccd.npz \\
        --method selective-search-128 --keep 30 --draws 4
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config

from mmdense.utils.log_level import suppress_third_party_warnings

suppress_third_party_warnings(every=True)  # before the imports below

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pieces import Piece, Study, pairs  # noqa: E402

from mmdense.apis.report.charts import thin  # noqa: E402
from mmdense.apis.report.run_log import read_run  # noqa: E402
from mmdense.apis.transfer import find_tasks  # noqa: E402
from mmdense.utils.errors import CONFIG_ERRORS, one_line_errors  # noqa: E402
from mmdense.utils.files import write_text  # noqa: E402

SEEDS = (0, 1)
LIST = 'bccd/ImageSets/Main/train.txt'  # 205 names
EPOCHS = (
    20  # of DenseCL on unlabeled/, 95 steps of 32 images each; its dense loss starts at step 1000
)
EPOCHS_ON_BCCD, BATCH = 75, 16  # of a detector's pretraining, 12 steps each
ITERATIONS, INTERVAL = 4000, 1000  # of fine-tuning, 4 images each; between validations
LR = 5e-4  # of detectors, with AdamW
MEASURES = ('mAP', 'AP50')
# What images are smaller than in the published recipes, in pretraining and in fine-tuning: the
# shorter side is 106 to 160, and 80 to 133 px.
PRETRAINING, FINETUNING = 3, 6
BACKBONE = dict(
    depth=18,
    base_channels=32,
    stem_channels=32,
    strides=[1, 2, 2, 1],  # DC5: the last map is 1/16 of the image
    dilations=[1, 1, 1, 2],
)
# By their name, wherever they stand in a detector's config.
SIZES = dict(
    embed_dims=128,
    feedforward_channels=256,
    num_feats=64,
    num_layers=2,
    num_queries=60,
    max_per_img=60,
)
NECKS = {1: [256], 3: [64, 128, 256]}  # channels of the backbone's maps, by their number


class Row(NamedTuple):
    """Define a detector, and what it starts from.

    Attributes:
        title (str): In the table.
        task (str): A config of configs/transfer/mmdet.
        start (str): What fills the detector: ``densecl`` (the backbone alone) or the method that
            pretrained all of it.
        against (str): The row that it is compared with; '' without one.
    """

    title: str
    task: str
    start: str
    against: str = ''


ROWS = {
    'detr': Row('DETR, pre-norm, from DenseCL', 'detr_r50_pre-norm_bccd', 'densecl'),
    'updetr': Row('DETR, pre-norm, from UP-DETR', 'detr_r50_pre-norm_bccd', 'updetr', 'detr'),
    'deformable': Row('Deformable DETR, from DenseCL', 'deformable-detr_r50_bccd', 'densecl'),
    'detreg': Row(
        'Deformable DETR, from DETReg', 'deformable-detr_r50_bccd', 'detreg', 'deformable'
    ),
    'conditional': Row(
        'Conditional DETR, from DenseCL', 'conditional-detr_r50_2-layers_bccd', 'densecl'
    ),
    'pairdetr': Row(
        'Pair DETR, from DenseCL', 'pairdetr_r50_2-layers_bccd', 'densecl', 'conditional'
    ),
}


def small(node: Any, path: str, shrink: int = 1) -> Iterator[Tuple[str, Any]]:
    """Yield the path and the value of each size of a detector's config, and of its pipelines."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = f'{path}.{key}' if path else str(key)
        if key in SIZES:
            yield here, SIZES[key]
        elif key in ('scale', 'scales', 'crop_size', 'max_size'):
            yield here, divided(value, shrink)
        elif key == 'backbone':
            yield from ((f'{here}.{name}', size) for name, size in BACKBONE.items())
        elif key == 'neck':
            if 'in_channels' in value:
                yield f'{here}.in_channels', NECKS[len(value['in_channels'])]
            yield f'{here}.out_channels', SIZES['embed_dims']
        elif isinstance(value, (dict, list, tuple)):
            yield from small(value, here, shrink)


def find_backbone(model: Config) -> Config:
    """Return the config of the backbone, which may be in a detector inside."""
    return model.backbone if 'backbone' in model else model.detector.backbone


def divided(pixels: Any, shrink: int) -> Any:
    """Return lengths in pixels, at any depth of lists, divided by a number."""
    if isinstance(pixels, int):
        return pixels // shrink
    return type(pixels)(divided(one, shrink) for one in pixels)


def densecl(seed: int = 0, data: Path = Path('data')) -> Config:
    """Return the config of the backbone's pretraining."""
    cfg = Config.fromfile(str(REPO / 'configs' / 'small' / 'densecl_r50_small.py'))
    cfg.merge_from_dict(
        {
            **{f'model.backbone.{key}': value for key, value in BACKBONE.items()},
            'model.backbone.strides': [1, 2, 2, 2],  # weights are the same, views are small
            'model.backbone.dilations': [1, 1, 1, 1],
            'model.neck.in_channels': NECKS[1][0],
            'train_dataloader.dataset.data_root': str(data / 'unlabeled'),
            'train_dataloader.dataset.pipeline.1.transforms.0.0.scale': 96,
            'train_dataloader.batch_size': 32,
            'optim_wrapper.optimizer.lr': 0.0375,
        }
    )
    return finished(cfg, EPOCHS, seed)


def detector(
    method: str,
    seed: int = 0,
    data: Path = Path('data'),
    names: str = 'train.txt',
    weights: str = 'backbone.pth',
    proposals: str = 'proposals.npz',
) -> Config:
    """Return the config of a detector's pretraining, on BCCD's training images."""
    cfg = Config.fromfile(str(REPO / 'configs' / f'{method}_r50_coco.py'))
    cfg.merge_from_dict(dict(small(cfg.model.to_dict(), 'model')))
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.merge_from_dict(dict(small(pipeline, 'train_dataloader.dataset.pipeline', PRETRAINING)))
    cfg.merge_from_dict(
        {
            'model.pretrained': weights,
            'train_dataloader.dataset.data_root': str(data / 'bccd' / 'JPEGImages'),
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.dataset.ann_file': names,
            'train_dataloader.batch_size': BATCH,
            'optim_wrapper.optimizer.lr': LR,
        }
    )
    for step in pipeline:
        if step.type == 'LoadProposals' and step.get('source') != 'random':
            step.update(source=proposals, data_root=str(data / 'bccd' / 'JPEGImages'))
    return finished(cfg, EPOCHS_ON_BCCD, seed)


def finished(cfg: Config, epochs: int, seed: int) -> Config:
    """Set the length of a run, its seed, and what is kept of it."""
    cfg.merge_from_dict(
        {
            'train_dataloader.num_workers': 1,
            'train_cfg.max_epochs': epochs,
            'default_hooks.checkpoint.interval': 5,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.logger.interval': 10,
            'randomness.seed': seed,
        }
    )
    return cfg


def pretraining(method: str, seed: int, data: Path, proposals: Path) -> Piece:
    """Return the piece that pretrains a backbone or a detector."""
    start = '' if method == 'densecl' else f'pretrain/densecl/seed{seed}'

    def command(folder: Path, *weights: Path) -> List[str]:
        if weights:
            images = (data / LIST).read_text().split()
            names = folder / 'train.txt'
            write_text(str(names), ''.join(f'{image}.jpg\n' for image in images))
            cfg = detector(method, seed, data, str(names), str(weights[0]), str(proposals))
        else:
            cfg = densecl(seed, data)
        write_text(str(folder / 'config.py'), cfg.pretty_text)
        run = ['--work-dir', str(folder / 'run'), '--resume']
        return [sys.executable, 'tools/train.py', str(folder / 'config.py'), *run]

    def read(folder: Path) -> Optional[dict]:
        if not (folder / 'run' / 'backbone.pth').is_file():
            return None
        log = read_run(str(folder / 'run'))
        loss = round(float(log.train['loss'].values[-1]), 4)
        return dict(metrics=dict(loss=loss), curves=curves(log))

    return Piece(
        f'pretrain/{method}/seed{seed}',
        lambda: (detector(method) if start else densecl()).to_dict(),
        command,
        read,
        f'pretrain-{method}.json',
        needs=(start,) if start else (),
        product='run/backbone.pth',
        minutes=12,
    )


def task_options(row: Row, seed: int = 0) -> Dict[str, Any]:
    """Return what is changed in the config of a task."""
    cfg = Config.fromfile(find_tasks()[row.task])
    options = dict(small(cfg.model.to_dict(), 'model'))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        path = f'{loader}.dataset.pipeline'
        options.update(small(cfg[loader].dataset.pipeline, path, FINETUNING))
        options[f'{loader}.num_workers'] = 1
    if row.start == 'densecl' and 'init_cfg' in cfg.model:  # the backbone alone
        options['model.init_cfg'] = None
        options['model.backbone.init_cfg.type'] = 'mmdense.SelfSupPretrained'
    return {
        **options,
        'optim_wrapper.optimizer.lr': LR,
        'train_dataloader.batch_size': 4,
        'auto_scale_lr.base_batch_size': 4,
        'train_cfg.max_iters': ITERATIONS,
        'train_cfg.val_interval': INTERVAL,
        'param_scheduler.0.end': ITERATIONS,
        'param_scheduler.0.milestones': [ITERATIONS * 2 // 3],
        'default_hooks.checkpoint.type': 'mmdense.CheckpointHook',
        'default_hooks.checkpoint.interval': 100,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        'default_hooks.logger.interval': 10,
        'randomness.seed': seed,
    }


def finetuning(name: str, seed: int, data: Path) -> Piece:
    """Return the piece that fine-tunes and tests a detector."""
    row = ROWS[name]

    def config() -> dict:
        cfg = Config.fromfile(find_tasks()[row.task])
        cfg.merge_from_dict(task_options(row))
        cfg.pop('checkpoint', None)
        for node in (cfg.model, find_backbone(cfg.model)):
            node.pop('init_cfg', None)
        return cfg.to_dict()

    def command(folder: Path, weights: Path) -> List[str]:
        where = ['--to', row.task, '--work-dir', str(folder), '--data-root', str(data)]
        options = ['--cfg-options', *pairs(task_options(row, seed))]
        return [sys.executable, 'tools/transfer.py', f'weights={weights}', *where, *options]

    def read(folder: Path) -> Optional[dict]:
        run = folder / 'weights' / row.task
        if not (run / 'result.json').is_file():
            return None
        found = json.loads((run / 'result.json').read_text())['metrics']
        metrics = {key: round(100 * found[f'pascal_voc/{key}'], 2) for key in MEASURES}
        return dict(metrics=metrics, curves=curves(read_run(str(run))))

    return Piece(
        f'finetune/{name}/seed{seed}',
        config,
        command,
        read,
        f'finetune-{name}.json',
        needs=(f'pretrain/{row.start}/seed{seed}',),
        minutes=15,
    )


def curves(log) -> Dict[str, List[List[float]]]:
    """Return the loss and validation's measures: [step, value], at most 100 points each."""
    found = {'loss': log.train['loss'], **log.evaluation}
    rounded = {}
    for name, curve in found.items():
        steps, values = thin(curve.steps, curve.values, 100)[:2]
        points = zip(steps.tolist(), values.tolist())
        rounded[name] = [[int(step), float(f'{value:.4g}')] for step, value in points]
    return rounded


def figures(study: Study) -> Tuple[str, str]:
    """Return the table of the page, and that of validation on the way, in Markdown."""
    results = study.results()
    found = {
        name: [results[id] for id in results if id.startswith(f'finetune/{name}/')] for name in ROWS
    }
    table = ['| | seeds | AP | AP50 | beside its row |', '| --- | --- | --- | --- | --- |']
    steps = range(INTERVAL, ITERATIONS + 1, INTERVAL)
    way = ['| AP50 on validation after | ' + ' | '.join(map(str, steps)) + ' |']
    way.append('| --- ' * (len(steps) + 1) + '|')
    for name, row in ROWS.items():
        runs = found[name]
        if not runs:
            table.append(f'| {row.title} | not run | | | |')
            continue
        cells = [spread([run['metrics'][key] for run in runs]) for key in MEASURES]
        gains = [
            run['metrics']['mAP'] - other['metrics']['mAP']
            for run in runs
            for other in found.get(row.against, [])
            if run['id'].split('/')[-1] == other['id'].split('/')[-1]
        ]
        gain = ', '.join(f'{gain:+.1f}' for gain in gains)
        table.append(f'| {row.title} | {len(runs)} | {cells[0]} | {cells[1]} | {gain} |')
        curves = [dict(run['curves']['pascal_voc/AP50']) for run in runs]
        cells = [spread([100 * curve[step] for curve in curves]) for step in steps]
        way.append(f'| {row.title} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(table), '\n'.join(way)


def spread(values: Sequence[float]) -> str:
    """Return the mean, and half of the range where there are several."""
    half = f' ± {(max(values) - min(values)) / 2:.1f}' if len(values) > 1 else ''
    return f'{sum(values) / len(values):.1f}{half}'


def draw(study: Study, path: Path) -> None:
    """Draw the losses of fine-tuning and validation's AP50: one panel each for every detector."""
    results = study.results()
    pairs_of = [(row.against, name) for name, row in ROWS.items() if row.against]
    figure = Figure(figsize=(3.4 * len(pairs_of), 4.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(pairs_of), squeeze=False)
    for column, names in enumerate(pairs_of):
        for i, name in enumerate(names):
            runs = [results[id] for id in results if id.startswith(f'finetune/{name}/')]
            for number, run in enumerate(runs):
                how = dict(color=f'C{i}', ls='-' if number == 0 else '--')
                label = ROWS[name].title if number == 0 else None
                loss, ap = run['curves']['loss'], run['curves']['pascal_voc/AP50']
                axes[0][column].plot(*zip(*loss), lw=1, label=label, **how)
                axes[1][column].plot(*zip(*ap), marker='.', **how)
        axes[0][column].set_title('loss', fontsize=9)
        axes[0][column].legend(fontsize=7)
        axes[1][column].set_title('AP50 on validation', fontsize=9)
    for axis in axes.flat:
        axis.set_xlabel('iterations of fine-tuning', fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    with matplotlib.rc_context({'svg.hashsalt': 'mmdense', 'svg.fonttype': 'none'}):
        figure.savefig(path, metadata=dict(Date=None))


def write_page(study: Study) -> Path:
    """Write docs/detectors.md: the text of detectors.md beside this file, with the figures."""
    table, way = figures(study)
    docs = REPO / 'docs'
    draw(study, docs / 'images' / 'evidence' / 'detectors.svg')
    text = (HERE / 'detectors.md').read_text(encoding='utf-8')
    for name, value in (('table', table), ('way', way)):
        text = text.replace('{{ ' + name + ' }}', value)
    write_text(str(docs / 'detectors.md'), text)
    return docs / 'detectors.md'


def make_study(args: argparse.Namespace) -> Study:
    """Return the study: all weights that others need first, then the rows of each seed."""
    data = args.data_root.absolute()
    methods = ['densecl', *dict.fromkeys(r.start for r in ROWS.values() if r.start != 'densecl')]
    pieces = []
    for seed in args.seeds:
        pieces += [pretraining(method, seed, data, args.proposals.absolute()) for method in methods]
        pieces += [finetuning(name, seed, data) for name in ROWS]
    return Study(pieces, args.work_dir, args.results)


def parse_args() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, default=REPO / 'data', help='of the images')
    parser.add_argument(
        '--proposals', type=Path, default=REPO / 'work_dirs' / 'bccd.npz', help='of DETReg'
    )
    parser.add_argument('--work-dir', type=Path, default=REPO / 'work_dirs' / 'detectors')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'detectors')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='to be back in')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="of ids: 'finetune/*'")
    parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
    parser.add_argument('--list', action='store_true', help='run nothing, print the pieces')
    parser.add_argument('--page', action='store_true', help='run nothing, write the page')
    return parser.parse_args()


def main() -> None:
    """Run what is missing, or write the page."""
    args = parse_args()
    with one_line_errors(*CONFIG_ERRORS):
        study = make_study(args)
        if args.list:
            print(study.table())
            return
        if args.page:
            print(f'wrote {write_page(study)}')
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: study.stop(signal.Signals(number).name))
        failed = study.run(args.minutes, args.only)
    print(study.table().splitlines()[-1])
    if failed:
        raise SystemExit(f'mmdense: error: failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
