# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Name images that cannot be read, and refuse data sets that are too small."""

from contextlib import suppress
from typing import Dict, Iterator, Optional, Sequence, Set

from mmengine.dataset import RepeatDataset
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset

from mmdense.datasets import UnreadableImageError
from mmdense.datasets.value_range import find_narrow_range
from mmdense.registry import HOOKS
from mmdense.utils.checks import check_number, is_number
from mmdense.utils.errors import DataError

from ..channels import find_loader
from ..events import log_event

MAX_UNREADABLE = 0.01  # share of the images


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Name, count and limit the images that could not be read.

    :class:`~mmdense.datasets.UnlabeledDataset` replaces them and names them in its data samples.
    This hook logs each file once a run: at once if rank 0 met it, at the end of the epoch if
    another rank did. At the end of each epoch all ranks together count them; the first epoch
    that this process completes ends in an error if there are too many. An iteration only reads a
    list.

    For loops that count iterations, an epoch is as many of them as it takes to see every image
    once.

    A resumed run counts anew: it meets again the files that are still bad.

    Before training it checks that there are enough images for one batch, and warns where the full
    range of 16 bits would leave few gray levels of a sample of the images.

    Args:
        max_ratio (float): The largest share of the data set that may be
            unreadable, in 0..1. Defaults to 0.01.
    """

    def __init__(self, max_ratio: float = MAX_UNREADABLE) -> None:
        if not is_number(max_ratio):
            raise TypeError(f'max_ratio must be a number in 0..1, got {max_ratio!r}')
        check_number('max_ratio', max_ratio, lambda x: 0 <= x <= 1, 'a number in 0..1')
        self.max_ratio = max_ratio
        self._reasons: Dict[str, str] = {}  # by file, for the files known to all ranks
        self._new: Dict[str, str] = {}  # met by this rank since they last spoke
        self._named: Set[str] = set()  # in this rank's log
        self._epochs = 0  # completed by this process

    def before_train(self, runner: Runner) -> None:
        """Check that there is one batch, and the values of 16-bit images.

        Raises:
            DataError: There is no complete batch.
        """
        check_enough_images(runner.train_dataloader)
        load = find_loader(runner.train_dataloader.dataset)
        if get_rank() or load is None or load.value_range is not None:
            return
        used = find_narrow_range(_sample_files(runner.train_dataloader.dataset))
        if used is not None:
            log_event(
                runner,
                'narrow_range',
                f'{used}; set value_range={used.value_range} of LoadImage',
                'WARNING',
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Note the unreadable files behind this batch."""
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        for sample in samples or ():
            for path, reason in getattr(sample, 'unreadable', ()):
                if path not in self._reasons:
                    self._new[path] = reason
                    self._name(runner, path, reason)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            dataloader = runner.train_dataloader
            batch = _batch_size(dataloader) * get_world_size()
            if (runner.iter + 1) % max(len(dataloader.dataset) // batch, 1) == 0:
                self._end_epoch(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count over all ranks.

        Raises:
            DataError: After the first epoch, if too many are unreadable.
        """
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._end_epoch(runner)

    def after_train(self, runner: Runner) -> None:
        """Name the files that other ranks met after the last complete epoch."""
        self._gather(runner)

    def _end_epoch(self, runner: Runner) -> None:
        self._gather(runner)
        self._epochs += 1
        if not self._reasons:
            return
        dataset = runner.train_dataloader.dataset
        number, total = len(self._reasons), _num_images(dataset)
        count = f'{number} of {total} images ({number / total:.2%}) cannot be read'
        if self._epochs == 1 and number > self.max_ratio * total:
            path, reason = next(iter(self._reasons.items()))
            raise DataError(
                f'{count}, more than max_ratio={self.max_ratio:g} of UnreadableImagesHook allows; '
                f'the first is {path} ({reason}), the log names all; images from '
                f'{_source(dataset)}. Delete them, or leave them out by tools/convert_dataset.py '
                '--check'
            )
        # not a warning: MMEngine's logger drops one that it has shown before
        log_event(
            runner,
            'unreadable_images',
            f'{count}; others took their places',
            number=number,
            total=total,
        )

    def _gather(self, runner: Runner) -> None:
        """Make ``_reasons`` the same on all ranks and let rank 0 name the
        files that it did not meet."""
        for new in all_gather_object(self._new):
            self._reasons.update(new)
            if get_rank() == 0:
                for path, reason in new.items():
                    self._name(runner, path, reason)
        self._new = {}

    def _name(self, runner: Runner, path: str, reason: str) -> None:
        if path not in self._named:
            self._named.add(path)
            log_event(
                runner,
                'unreadable_image',
                f'cannot read image {path}: {reason}; another takes its place',
                'WARNING',
                path=path,
                reason=reason,
            )


def _sample_files(dataset: Dataset, number: int = 16) -> Iterator[bytes]:
    """Yield the files of some images, spread over a data set that can read them."""
    while isinstance(dataset, RepeatDataset):
        dataset = dataset.dataset
    if hasattr(dataset, 'read'):
        for index in range(0, len(dataset), -(-len(dataset) // number)):
            with suppress(UnreadableImageError):
                yield dataset.read(index)[1]


def check_enough_images(dataloader: DataLoader) -> None:
    """Make sure that a data set fills one batch on every process.

    With fewer images training would do nothing (``drop_last``), or fail far from the cause:
    MMEngine's conversion of schedulers to iterations asserts on an empty epoch before any hook
    runs, so the tools call this before that.

    Args:
        dataloader (DataLoader): ``runner.train_dataloader``.

    Raises:
        DataError: There are fewer images.
    """
    dataset = dataloader.dataset
    if not hasattr(dataset, '__len__'):  # a stream
        return
    batch, processes = _batch_size(dataloader), get_world_size()
    if len(dataset) < batch * processes:
        raise DataError(
            f'{len(dataset)} images are fewer than one batch of {batch} on each of {processes} '
            f'process(es); looked for images in {_source(dataset)}'
        )


def _batch_size(dataloader: DataLoader) -> int:
    if dataloader.batch_size is not None:
        return dataloader.batch_size
    return getattr(dataloader.batch_sampler, 'batch_size', 1)


def _num_images(dataset: Dataset) -> int:
    while isinstance(dataset, RepeatDataset):
        dataset = dataset.dataset
    return len(dataset)


def _source(dataset: Dataset) -> str:
    """Return the source of the images, through wrappers (Subset, ConcatDataset…)."""
    if hasattr(dataset, 'source'):
        return dataset.source
    inner: Sequence[Dataset] = getattr(dataset, 'datasets', ())
    if hasattr(dataset, 'dataset'):
        inner = (dataset.dataset,)
    return ', '.join(map(_source, inner)) or type(dataset).__name__
