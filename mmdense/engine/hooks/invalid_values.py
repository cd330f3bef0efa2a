# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What becomes of a step whose loss or gradients are not finite."""

from collections import defaultdict, deque
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor, nn

from mmdense.checkpoints import latest_whole_checkpoint
from mmdense.models.layers import KeyQueue, MomentumEncoder
from mmdense.registry import HOOKS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import MMDenseError


@HOOKS.register_module()
class CheckInvalidValuesHook(Hook):
    """Skips steps whose loss or gradients are NaN or infinite, and says where they come from.

    Parameters, the optimizer's state, BatchNorm's statistics, queues and
    centers stay what they were before the step. The batch is run once more, to
    name in the log the first module (in forward order) whose output is not
    finite, and the files: of the images that can be told, else of the whole
    batch. Every process skips what one of them does.

    After ``max_in_a_row`` such steps the run ends with one line. It ends at
    once when a weight itself is not finite, which no further step can mend. A
    checkpoint that holds such a weight is not written, so the last one is good.

    With a gradient scaler (float16) an overflow of the gradients is everyday
    business, which the scaler skips by itself. It counts here when it goes on
    at scales below 1. An overflow in the forward pass, which no scale mends,
    does count.

    With accumulated gradients one bad iteration spoils its whole step.

    Nothing waits for the device: it decides by itself whether a step is undone,
    and the host reads the verdict one iteration later, when the next one is
    under way. (On the CPU at once.) With several processes one number is
    exchanged in every iteration. On a GPU there is, for the length of the
    optimizer's step, a second copy of what it changes; the last batch is kept
    for one iteration more.

    Args:
        max_in_a_row (int): Steps in a row that end the run, from 1, which ends
            it at the first. Defaults to 5.
    """

    priority = 'VERY_HIGH'  # what follows in an iteration finds good values
    by_design: frozenset = frozenset()

    def __init__(self, max_in_a_row: int = 5) -> None:
        check_counts(max_in_a_row=max_in_a_row)
        self.max_in_a_row = max_in_a_row

    def before_train(self, runner: Runner) -> None:
        """Attaches itself to the model and the optimizer."""
        self.model = get_ori_model(runner.model)
        self.pending: deque = deque()
        self.in_a_row = self.skipped = 0
        self.bad_in_step = self.diagnosing = self.stepped = False
        # flags on the device; in `spoiled` all of this step's iterations
        self.spoiled: Any = False
        self.bad_gradients: Any = False
        # a mask, say, that holds -inf by design
        self.by_design = {n for n, b in self.model.named_buffers() if not b.isfinite().all()}
        self.written = _Written(self.model, self.by_design)
        optimizer = runner.optim_wrapper.optimizer
        self.handles = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward, with_kwargs=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    # ------------------------------------------------------------ on the device

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.diagnosing or kwargs.get('mode') != 'loss':
            return
        self.batch = kwargs['inputs'], kwargs.get('data_samples')
        self.written.keep(len(_views(self.batch[0])[0]))

    @torch.no_grad()
    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if self.diagnosing or kwargs.get('mode') != 'loss':
            return
        finite = [loss.isfinite().all() for loss in _tensors(losses)] + self.written.finite()
        bad = (~torch.stack(finite).all()).float()
        all_reduce(bad, op='max')
        self.bad = bad.bool()
        self.spoiled = self.spoiled | self.bad

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        params = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([p.grad for p in params], 1))
        invalid = ~norms.isfinite().all()
        if getattr(optimizer, 'found_inf', None) is not None:  # a fused one skips by itself
            invalid = torch.zeros_like(invalid)
        self.bad_gradients, self.spoiled = invalid, self.spoiled | invalid
        self.stepped = True
        self.before_step = None
        if invalid.device.type == 'cpu' and not self.spoiled:  # to ask costs nothing there
            return
        # Adam's count of steps may be on the host, which is not asked to wait
        states = [v for p in params for v in _states(optimizer, p) if v.device == invalid.device]
        self.before_step = _Snapshot([p.data for p in params] + states)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if self.before_step is None:
            return
        self.before_step.put_back(self.spoiled)
        known = {id(value) for value in self.before_step.tensors}
        for p in optimizer.state:
            for value in _states(optimizer, p):
                if id(value) not in known and value.device == self.spoiled.device:  # its first step
                    torch.where(self.spoiled, torch.zeros_like(value), value, out=value)
        self.before_step = None

    # ------------------------------------------------------------ on the host

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Undoes what a bad forward pass has written, and says so.

        Raises:
            MMDenseError: It is the last in a row, or a weight is not finite.
        """
        self.written.put_back(self.bad | self.bad_gradients)
        ends_step, overflow = runner.optim_wrapper.should_update(), None
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if (
            ends_step and not self.stepped and scaler is not None
        ):  # it has skipped the step by itself
            scale = scaler.get_scale()
            overflow = scale if scale < 1 else None
        flags = torch.stack([self.bad, self.spoiled])
        self.pending.append(
            _Iteration(runner.iter, _to_host(flags), ends_step, overflow, self.batch)
        )
        if ends_step:
            self.spoiled = self.bad_gradients = self.stepped = False
        while len(self.pending) > int(flags.is_cuda):
            self._judge(runner, self.pending.popleft())

    def after_train(self, runner: Runner) -> None:
        """Reads what is left, and leaves the model as it was."""
        while self.pending:
            self._judge(runner, self.pending.popleft())
        for handle in self.handles:
            handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps what is not finite off the disk.

        Raises:
            MMDenseError: A tensor of the model holds NaN or Inf.
        """
        state = checkpoint['state_dict']
        broken = _first_invalid({k: v for k, v in state.items() if k not in self.by_design})
        if broken:
            raise MMDenseError(f'{broken}: no checkpoint is written. {_way_back(runner)}')

    def _judge(self, runner: Runner, iteration: '_Iteration') -> None:
        (bad, spoiled), overflow = iteration.read(), iteration.overflow
        # a step that an earlier iteration has spoiled says nothing of this batch
        if bad or (spoiled and not self.bad_in_step):
            found = self._diagnose(runner, iteration)
            if found.broken:
                raise MMDenseError(
                    f'{found.broken}, found in iteration {iteration.number + 1}: no further step '
                    f'can mend it. First: {found.where}. {_way_back(runner)}'
                )
            runner.logger.warning(
                f'NaN or Inf in the {"loss" if bad else "gradients"} of iteration '
                f'{iteration.number + 1}: its step is skipped. First: {found.where}. '
                f'Images: {", ".join(found.files)}'
            )
        elif overflow is not None:
            runner.logger.warning(
                f'The gradients of iteration {iteration.number + 1} overflow float16 although '
                f'they are scaled by {overflow:g}: its step is skipped.'
            )
        self.bad_in_step = self.bad_in_step or bad
        if not iteration.ends_step:
            return
        self.bad_in_step = False
        if not spoiled and overflow is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        if self.in_a_row >= self.max_in_a_row:
            raise MMDenseError(
                f'{self.in_a_row} step(s) in a row were not finite, the last in iteration '
                f'{iteration.number + 1} ({self.skipped} in all); the log names modules and '
                f'images. Try a lower learning rate, a longer warm-up, or without --amp. '
                f'{_way_back(runner)}'
            )

    def _diagnose(self, runner: Runner, iteration: '_Iteration') -> '_Finding':
        """Runs a batch again, on all processes; the earliest finding of any."""
        self.diagnosing = True
        inputs, samples = iteration.batch
        context = runner.optim_wrapper.optim_context(self.model)
        try:
            with _left_as_it_is(self.model), context, torch.enable_grad():
                mine = _find(self.model, inputs, samples, self.by_design)
        finally:
            self.diagnosing = False
        found = all_gather_object(mine)
        first = min(found, key=lambda f: f.order)
        files = [path for f in found if f.order == first.order for path in f.files]
        broken = next((f.broken for f in found if f.broken), '')
        return first._replace(files=files, broken=broken)


class _Iteration(NamedTuple):
    """What the host has yet to read."""

    number: int
    flags: tuple  # two bools: this forward pass is bad; so is the step, until here
    ends_step: bool
    overflow: Optional[float]  # the scale, where it is no excuse
    batch: tuple

    def read(self) -> List[bool]:
        """Waits until the device has come there."""
        host, event = self.flags
        if event is not None:
            event.synchronize()
        return host.tolist()


def _to_host(flags: Tensor) -> tuple:
    if not flags.is_cuda:
        return flags.cpu(), None
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _states(optimizer: torch.optim.Optimizer, parameter: Tensor) -> List[Tensor]:
    found = optimizer.state[parameter].values() if parameter in optimizer.state else ()
    return [value for value in found if isinstance(value, Tensor)]


class _Snapshot:
    """Tensors, and how they were.

    Vectors are many and small, and go through a few operations together.
    """

    def __init__(self, tensors: List[Tensor]) -> None:
        groups = defaultdict(list)
        for i, tensor in enumerate(tensors):
            groups[tensor.dtype if tensor.dim() < 2 else i].append(tensor)
        self.tensors, self.groups = tensors, list(groups.values())
        self.keep()

    def keep(self) -> None:
        """How they are now."""
        self.before = [_flat(g) if g[0].dim() < 2 else g[0].clone() for g in self.groups]

    def finite(self) -> List[Tensor]:
        """Whether they are now, bools on their device."""
        return [_flat(g).isfinite().all() for g in self.groups if g[0].is_floating_point()]

    def put_back(self, bad: Tensor) -> None:
        """Where ``bad``, as they were."""
        for group, before in zip(self.groups, self.before):
            if group[0].dim() < 2:
                values = torch.where(bad, before, _flat(group)).split([t.numel() for t in group])
                torch._foreach_copy_(group, [v.view_as(t) for v, t in zip(values, group)])
            else:
                torch.where(bad, before, group[0], out=group[0])


def _flat(group: List[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in group]) if group[0].dim() < 2 else group[0]


class _Written:
    """The buffers that a forward pass writes, and how they were before it.

    The twin's ``steps`` is not among them: the twin follows weights that are
    good. Of a queue only the columns that the batch's keys go to.
    """

    def __init__(self, model: nn.Module, by_design: Set[str]) -> None:
        parts = list(model.modules())
        self.queues = [part for part in parts if isinstance(part, KeyQueue)]
        twins = [part for part in parts if isinstance(part, MomentumEncoder)]
        others = {id(q.keys) for q in self.queues} | {id(twin.steps) for twin in twins}
        others |= {id(b) for n, b in model.named_buffers() if n in by_design}
        self.buffers = _Snapshot([b for b in model.buffers() if id(b) not in others])

    @torch.no_grad()
    def keep(self, num_images: int) -> None:
        """How it is now, before a batch of so many images in this process."""
        number = num_images * get_world_size()
        self.columns = [
            (q.ptr + torch.arange(min(number, q.queue_len), device=q.ptr.device)) % q.queue_len
            for q in self.queues
        ]
        self.buffers.keep()
        self.keys = self._keys()

    def _keys(self) -> List[Tensor]:
        return [q.keys[:, columns] for q, columns in zip(self.queues, self.columns)]

    def finite(self) -> List[Tensor]:
        """Whether it is, bools on the device."""
        return self.buffers.finite() + [keys.isfinite().all() for keys in self._keys()]

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Where ``bad``, as it was."""
        self.buffers.put_back(bad)
        for queue, columns, before, now in zip(self.queues, self.columns, self.keys, self._keys()):
            queue.keys.index_copy_(1, columns, torch.where(bad, before, now))


# ---------------------------------------------------------------- where it comes from


class _Finding(NamedTuple):
    order: tuple  # the less, the earlier in a step
    where: str
    files: List[str]
    broken: str  # a weight or buffer that is not finite by itself


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """A forward pass in it changes no buffer, no twin and no random number; nothing is compiled."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    twins = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
    moving = [twin.enabled for twin in twins]
    compiled = [(m, m.__dict__.pop('_compiled_call_impl', None)) for m in model.modules()]
    for twin in twins:
        twin.enabled = False
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        _put_all_back(twins, moving, compiled, buffers)


def _put_all_back(twins, moving, compiled, buffers) -> None:
    for twin, moves in zip(twins, moving):
        twin.enabled = moves
    for module, call in compiled:
        if call is not None:
            module._compiled_call_impl = call
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def _find(model: nn.Module, inputs: Any, samples: Optional[list], by_design: Set[str]) -> _Finding:
    """Where the first value comes from that is not finite."""
    names = {module: name for name, module in model.named_modules()}
    views = _views(inputs)
    number = len(views[0])
    files = [str(getattr(s, 'img_path', '?')) for s in samples or ()] or ['not known']
    state = dict(model.named_parameters(), **dict(model.named_buffers()))
    broken = _first_invalid({k: v for k, v in state.items() if k not in by_design})
    found: List[Tuple[int, nn.Module, Tensor]] = []  # with which images are finite there
    backward: List[nn.Module] = []
    calls, grads = [0], None

    def note_gradient(module: nn.Module, grad: Tensor) -> None:
        if not grad.isfinite().all():
            backward.append(module)

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        calls[0] += 1
        for value in _tensors(output):
            if not found and not value.isfinite().all():
                # at once: what follows may write over it
                found.append((calls[0], module, _finite_rows(value.detach(), number)))
            if value.requires_grad and module is not model:
                value.register_hook(partial(note_gradient, module))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        losses = model(inputs, samples, mode='loss')
        values = list(_tensors(losses))
        finite = all(bool(loss.isfinite().all()) for loss in values)
        # a backward pass may communicate (SyncBN): all do it, or none
        if all(all_gather_object(finite)):
            params = {k: p for k, p in model.named_parameters() if p.requires_grad}
            total = sum(loss.mean() for loss in values)
            # reentrant activation checkpointing allows .backward() only
            with suppress(RuntimeError):
                grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()

    rows = torch.stack([_finite_rows(view, number) for view in views]).all(0)
    from_input = not bool(rows.all())
    if found and found[0][1] is not model:
        order, module, rows_there = found[0]
        where = f'the output of {names[module]} ({type(module).__name__})'
        own = _first_invalid(dict(module.named_parameters(), **dict(module.named_buffers())))
        if from_input:
            where = f'images that hold NaN or Inf as they enter the model, and with them {where}'
        elif own:
            where += f', whose own {own}'
        else:
            rows = rows_there
            if names[module].startswith('encoder_k') and get_world_size() > 1:
                rows = torch.ones_like(rows)  # the twin sees images of all processes
    elif not finite:
        order = calls[0] + 1
        bad = [name for name, loss in losses.items() for t in _tensors(loss) if not t.isfinite()]
        where = f'{" and ".join(bad)} (the outputs of all modules are finite)'
    elif backward:
        order = calls[0] + 2
        where = (
            f'the gradient that reaches the output of {names[backward[0]]} '
            f'({type(backward[0]).__name__}); the forward pass is finite'
        )
    elif grads is None:
        order = calls[0] + 3
        where = 'in the gradients; activation checkpointing hides of which module'
    else:
        order = calls[0] + 4
        bad = _first_invalid({k: g for (k, _), g in zip(params.items(), grads) if g is not None})
        written = _first_invalid(dict(model.named_buffers()))
        where = (
            (bad and f'the gradient of {bad}')
            or (written and f'{written} after the forward pass')
            or 'not to be found, as the batch gave finite values when it was run once more'
        )
    some = [path for path, good in zip(files, rows.tolist()) if not good]
    return _Finding((not from_input, order), where, some or files, broken)


def _finite_rows(value: Tensor, number: int) -> Tensor:
    """N, whether an image's part of a tensor is finite; all are where that cannot be told."""
    if value.dim() < 2 or len(value) % number:
        return torch.ones(number, dtype=torch.bool, device=value.device)
    return value.isfinite().reshape(number, -1).all(1)


def _first_invalid(tensors: Dict[str, Any]) -> str:
    """Which of them is not finite, in words; '' if all are."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            kind = 'NaN' if value.isnan().any() else 'Inf'
            return f'{name} holds {kind}'
    return ''


def _views(inputs: Any) -> List[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point ones, however nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (list, tuple, dict)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)


def _way_back(runner: Runner) -> str:
    last = latest_whole_checkpoint(runner.work_dir)
    return f'The last checkpoint, {last}, is good.' if last else 'There is no checkpoint yet.'
