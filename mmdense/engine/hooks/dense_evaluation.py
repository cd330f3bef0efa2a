# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import time
from typing import Optional, Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from mmdense.datasets import LoadImage
from mmdense.evaluation import evaluate_features
from mmdense.evaluation.dense_features import check_arguments
from mmdense.registry import DATASETS, HOOKS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import MMDenseError

from ..channels import find_loader
from ..events import log_event


@HOOKS.register_module()
class DenseEvaluationHook(Hook):
    """Evaluate the frozen dense features during training.

    :func:`~mmdense.evaluation.evaluate_features` measures nearest-neighbour label propagation
    and a linear probe on the algorithm's product (a detector's backbone), in eval mode: before the
    first iteration (the weights that the run starts from), every ``interval`` epochs, and at the
    end. Every log backend of the visualizer gets ``eval/knn_mIoU`` and ``eval/linear_mIoU``, or
    ``eval/knn_accuracy`` and so on with boxes, in per cent, at the step of the losses of that
    iteration; the log gets a line.

    It works on a copy: weights, BatchNorm, gradients, modes and random generators stay as they
    are, and a run is the same with and without it, to the last bit. All processes share the
    images, and take the first one's statistics of BatchNorm, so that the numbers do not depend
    on the number of processes.

    A fault of the data or the backbone ends the run at the first evaluation; later (features
    that are not finite, an image that is gone) it is an error in the log, and training
    continues.

    ``save_best`` of the CheckpointHook does not see these numbers: it takes those of a
    validation loop.

    Args:
        data (dict): Labelled images, :class:`~mmdense.evaluation.LabelledMaps` or
            :class:`~mmdense.evaluation.LabelledBoxes`. Do not take those that a result is
            published on: a user looks at these numbers again and again.
        interval (int): Epochs between two evaluations, or iterations. Defaults to 10.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        methods (Sequence[str]): 'knn' and 'linear'. Defaults to both.
        size (int): Larger images are scaled down until their longer side has this many pixels.
            Defaults to 512.
        max_images (int, optional): Number of images of train and of test each; None is all.
            Defaults to 50.
        stage (int): Index of the stage whose map is evaluated. Defaults to -1, the last.
    """

    def __init__(
        self,
        data: dict,
        interval: int = 10,
        by_epoch: bool = True,
        methods: Sequence[str] = ('knn', 'linear'),
        size: int = 512,
        max_images: Optional[int] = 50,
        stage: int = -1,
    ) -> None:
        check_counts(interval=interval)
        check_arguments(methods, size, max_images, stage)
        self.data = DATASETS.build(data)
        self.interval, self.by_epoch = interval, by_epoch
        self.options = dict(methods=methods, size=size, max_images=max_images, stage=stage)
        self.tried = False

    def before_train(self, runner: Runner) -> None:
        """Read labelled images as the others; evaluate the weights that a new run starts from."""
        load = find_loader(runner.train_dataloader.dataset)
        if load is not None:  # in full size, where labels are
            self.data.load = LoadImage(value_range=load.value_range, channels=load.channels)
        if runner.iter == 0:
            self._evaluate(runner, 0)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Evaluate, if ``interval`` counts iterations and they are due."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        if not self.by_epoch and due:
            self._evaluate(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate, if ``interval`` counts epochs and they are due."""
        due = self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)
        if self.by_epoch and due:
            self._evaluate(runner, runner.iter)

    def _evaluate(self, runner: Runner, step: int) -> None:
        model = get_ori_model(runner.model)
        # mmpretrain's algorithms have no other product
        backbone = model.get_product() if hasattr(model, 'get_product') else model.backbone
        if getattr(model, 'product', '') == 'detector':
            backbone = backbone.backbone
        first, self.tried = not self.tried, True
        start = time.perf_counter()
        try:
            found = evaluate_features(backbone, model.data_preprocessor, self.data, **self.options)
        except MMDenseError as error:
            if first:
                raise
            log_event(
                runner,
                'evaluation_failed',
                f'Evaluation of the features after {step} iterations: {error}',
                'ERROR',
                iteration=step,
            )
            return
        numbers = ', '.join(f'{name} {value:.2f}' for name, value in found.items())
        guesses = getattr(found, 'guesses', {})
        chance = ', '.join(f'{name} {value:.2f}' for name, value in guesses.items())
        chance = chance and f'. For comparison, the most frequent class everywhere scores {chance}'
        took = time.perf_counter() - start
        log_event(
            runner,
            'evaluation',
            f'Features after {step} iterations: {numbers} ({took:.0f} s){chance}',
            iteration=step,
            values=dict(found),
            guesses=guesses,
            seconds=round(took, 1),
        )
        scalars = {f'eval/{name}': value for name, value in found.items()}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)  # checkpoints hold them
        runner.visualizer.add_scalars(dict(scalars, iter=step), step=step)
