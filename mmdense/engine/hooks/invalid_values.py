# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Skip steps whose loss or gradients are not finite, and say where the values come from."""

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

from mmdense.checkpoints import latest_complete_checkpoint
from mmdense.models.layers import KeyQueue, MomentumEncoder
from mmdense.registry import HOOKS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import MMDenseError

from ..events import log_event
from ..step_guard import StepGuard


@HOOKS.register_module()
class CheckInvalidValuesHook(Hook):
    """Skip steps whose loss or gradients are NaN or infinite, and say where they come from.

    Parameters, the optimizer's state, BatchNorm's statistics, queues and centers stay as they
    were before the step. The batch is run once more, to name in the log the first module (in
    forward order) whose output is not finite, and the files: those of the images that cause it,
    or of the complete batch where single images cannot be separated. Every process skips a step
    that one of them skips.

    After ``max_in_a_row`` such steps the run ends with one line. It ends at once when a weight
    itself is not finite, which no further step can fix. A checkpoint that holds such a weight is
    not written, so the last one is good.

    With a gradient scaler (float16) an overflow of the gradients is expected, and the scaler
    skips the step by itself. It counts here if it continues at scales below 1. An overflow in
    the forward pass, which no scale fixes, does count.

    With accumulated gradients one bad iteration spoils its complete step.

    Nothing waits for the device: it decides by itself whether a step is undone, and the host
    reads the result one iteration later, when the next one is under way (on the CPU at once).
    With several processes one number is exchanged in every iteration. On a GPU there is, for the
    length of the optimizer's step, a second copy of all that the step changes; the last batch is
    kept for one iteration more.

    Args:
        max_in_a_row (int): Steps in a row that end the run; 1 ends it at the first. Defaults to
            5.
    """

    priority = 'VERY_HIGH'  # hooks that follow in an iteration find good values
    by_design: frozenset = frozenset()

    def __init__(self, max_in_a_row: int = 5) -> None:
        check_counts(max_in_a_row=max_in_a_row)
        self.max_in_a_row = max_in_a_row

    def before_train(self, runner: Runner) -> None:
        """Attach hooks to the model and the optimizer."""
        self.model = get_ori_model(runner.model)
        self.pending: deque = deque()
        self.in_a_row = self.skipped = 0
        self.bad_in_step = self.diagnosing = self.stepped = False
        # flags on the device; `spoiled` joins all iterations of this step
        self.spoiled: Any = False
        self.bad_gradients: Any = False
        # a mask, for example, holds -inf by design
        self.by_design = {n for n, b in self.model.named_buffers() if not b.isfinite().all()}
        self.written = _Written(self.model, self.by_design)
        optimizer = runner.optim_wrapper.optimizer
        self.handles = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward, with_kwargs=True),
            StepGuard(optimizer, self._before_step, self._after_step),
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
    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        params = [p for g in optimizer.param_groups for p in g['params'] if p.grad is not None]
        invalid = ~_all_finite([p.grad for p in params])
        if getattr(optimizer, 'found_inf', None) is not None:  # a fused optimizer skips by itself
            invalid = torch.zeros_like(invalid)
        self.bad_gradients, self.spoiled = invalid, self.spoiled | invalid
        self.stepped = True
        self.before_step = None
        if invalid.device.type == 'cpu' and not self.spoiled:  # reading it costs nothing there
            return
        # Adam's count of steps may be on the host, which must not wait
        states = [v for p in params for v in _states(optimizer, p) if v.device == invalid.device]
        self.before_step = _Snapshot([p.data for p in params] + states)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.before_step is None:
            return
        self.before_step.put_back(self.spoiled)
        known = {id(value) for value in self.before_step.tensors}
        for p in optimizer.state:
            for value in _states(optimizer, p):
                # the state of a parameter is new in its first step
                if id(value) not in known and value.device == self.spoiled.device:
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
        """Undo the writes of a bad forward pass, and log them.

        Raises:
            MMDenseError: It is the last in a row, or a weight is not finite.
        """
        self.written.put_back(self.bad | self.bad_gradients)
        ends_step, overflow = runner.optim_wrapper.should_update(), None
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if ends_step and not self.stepped and scaler is not None:
            scale = scaler.get_scale()  # the scaler has skipped the step by itself
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
        """Read the remaining flags, and leave the model as it was."""
        while self.pending:
            self._judge(runner, self.pending.popleft())
        for handle in self.handles:
            handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save values that are not finite.

        Raises:
            MMDenseError: A tensor of the model holds NaN or Inf.
        """
        state = checkpoint['state_dict']
        broken = _first_invalid({k: v for k, v in state.items() if k not in self.by_design})
        if broken:
            raise MMDenseError(
                f'{broken}: no checkpoint is written. {_describe_last_checkpoint(runner)}'
            )

    def _judge(self, runner: Runner, iteration: '_Iteration') -> None:
        (bad, spoiled), overflow = iteration.read(), iteration.overflow
        # this batch may be good if an earlier iteration has spoiled the step
        if bad or (spoiled and not self.bad_in_step):
            found = self._diagnose(runner, iteration)
            if found.broken:
                raise MMDenseError(
                    f'{found.broken}, found in iteration {iteration.number + 1}: no further step '
                    f'can fix it. First: {found.where}. {_describe_last_checkpoint(runner)}'
                )
            cause = 'loss' if bad else 'gradients'
            log_event(
                runner,
                'skipped_step',
                f'NaN or Inf in the {cause} of iteration {iteration.number + 1}: its step is '
                f'skipped. First: {found.where}. Images: {", ".join(found.files)}',
                'WARNING',
                iteration=iteration.number + 1,
                cause=cause,
                first=found.where,
                images=found.files,
            )
        elif overflow is not None:
            log_event(
                runner,
                'skipped_step',
                f'The gradients of iteration {iteration.number + 1} overflow float16 although '
                f'they are scaled by {overflow:g}: its step is skipped.',
                'WARNING',
                iteration=iteration.number + 1,
                cause='overflow',
                scale=overflow,
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
                f'{_describe_last_checkpoint(runner)}'
            )

    def _diagnose(self, runner: Runner, iteration: '_Iteration') -> '_Finding':
        """Run a batch again on all processes, and return the earliest finding of any."""
        self.diagnosing = True
        inputs, samples = iteration.batch
        context = runner.optim_wrapper.optim_context(self.model)
        try:
            with _unchanged(self.model), context, torch.enable_grad():
                mine = _find(self.model, inputs, samples, self.by_design)
        finally:
            self.diagnosing = False
        found = all_gather_object(mine)
        first = min(found, key=lambda f: f.order)
        files = [path for f in found if f.order == first.order for path in f.files]
        broken = next((f.broken for f in found if f.broken), '')
        return first._replace(files=files, broken=broken)


class _Iteration(NamedTuple):
    """Hold an iteration whose flags the host has not read yet."""

    number: int
    flags: tuple  # two bools: this forward pass is bad; so is the step, until here
    ends_step: bool
    overflow: Optional[float]  # the scale, if it is so low that the overflow counts
    batch: tuple

    def read(self) -> List[bool]:
        """Wait until the device has computed the flags, and return them."""
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


def _all_finite(tensors: List[Tensor]) -> Tensor:
    """Return a bool on the device: whether all values are finite, as their sums are then."""
    if tensors[0].device.type == 'cpu':
        sums = [tensor.sum() for tensor in tensors]  # three times faster there than norms
    else:
        sums = torch._foreach_norm(tensors, 1)  # one kernel
    return torch.stack(sums).isfinite().all()


def _states(optimizer: torch.optim.Optimizer, parameter: Tensor) -> List[Tensor]:
    found = optimizer.state[parameter].values() if parameter in optimizer.state else ()
    return [value for value in found if isinstance(value, Tensor)]


class _Snapshot:
    """Keep tensors together with a copy of their values.

    Vectors are many and small: a few operations treat them together.
    """

    def __init__(self, tensors: List[Tensor]) -> None:
        groups = defaultdict(list)
        for i, tensor in enumerate(tensors):
            groups[tensor.dtype if tensor.dim() < 2 else i].append(tensor)
        self.tensors, self.groups = tensors, list(groups.values())
        self.keep()

    def keep(self) -> None:
        """Copy the present values."""
        self.before = [_flat(g) if g[0].dim() < 2 else g[0].clone() for g in self.groups]

    def finite(self) -> List[Tensor]:
        """Return bools on the device of the tensors: whether the present values are finite."""
        return [_flat(g).isfinite().all() for g in self.groups if g[0].is_floating_point()]

    def put_back(self, bad: Tensor) -> None:
        """Restore the copies where ``bad``, a bool on the device."""
        for group, before in zip(self.groups, self.before):
            if group[0].dim() < 2:
                values = torch.where(bad, before, _flat(group)).split([t.numel() for t in group])
                torch._foreach_copy_(group, [v.view_as(t) for v, t in zip(values, group)])
            else:
                torch.where(bad, before, group[0], out=group[0])


def _flat(group: List[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in group]) if group[0].dim() < 2 else group[0]


class _Written:
    """Keep the values that the buffers had before a forward pass, which writes them.

    The momentum encoder's ``steps`` is not among them: the encoder was updated with good
    weights. Of a queue only the columns are kept that the batch's keys go to.
    """

    def __init__(self, model: nn.Module, by_design: Set[str]) -> None:
        parts = list(model.modules())
        self.queues = [part for part in parts if isinstance(part, KeyQueue)]
        encoders = [part for part in parts if isinstance(part, MomentumEncoder)]
        others = {id(q.keys) for q in self.queues} | {id(encoder.steps) for encoder in encoders}
        others |= {id(b) for n, b in model.named_buffers() if n in by_design}
        self.buffers = _Snapshot([b for b in model.buffers() if id(b) not in others])

    @torch.no_grad()
    def keep(self, num_images: int) -> None:
        """Copy the present values, before a batch of N images in this process."""
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
        """Return bools on the device: whether the present values are finite."""
        return self.buffers.finite() + [keys.isfinite().all() for keys in self._keys()]

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Restore the copies where ``bad``, a bool on the device."""
        self.buffers.put_back(bad)
        for queue, columns, before, now in zip(self.queues, self.columns, self.keys, self._keys()):
            queue.keys.index_copy_(1, columns, torch.where(bad, before, now))


# ---------------------------------------------------------------- where it comes from


class _Finding(NamedTuple):
    order: tuple  # smaller is earlier in a step
    where: str
    files: List[str]
    broken: str  # a weight or buffer that is not finite by itself


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Keep buffers, momentum encoders and random numbers as they are during forward passes in the
    block, which run uncompiled."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    encoders = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
    enabled = [encoder.enabled for encoder in encoders]
    compiled = [(m, m.__dict__.pop('_compiled_call_impl', None)) for m in model.modules()]
    for encoder in encoders:
        encoder.enabled = False
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        _restore(encoders, enabled, compiled, buffers)


def _restore(encoders, enabled, compiled, buffers) -> None:
    for encoder, value in zip(encoders, enabled):
        encoder.enabled = value
    for module, call in compiled:
        if call is not None:
            module._compiled_call_impl = call
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def _find(model: nn.Module, inputs: Any, samples: Optional[list], by_design: Set[str]) -> _Finding:
    """Run a batch and name the first value that is not finite."""
    trace = _Trace(model, len(_views(inputs)[0]))
    state = dict(model.named_parameters(), **dict(model.named_buffers()))
    broken = _first_invalid({k: v for k, v in state.items() if k not in by_design})
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    grads = None
    with trace:
        losses = model(inputs, samples, mode='loss')
        values = list(_tensors(losses))
        finite = all(bool(loss.isfinite().all()) for loss in values)
        # a backward pass may communicate (SyncBN): all do it, or none
        if all(all_gather_object(finite)):
            total = sum(loss.mean() for loss in values)
            # reentrant activation checkpointing allows .backward() only
            with suppress(RuntimeError):
                grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)

    rows = torch.stack([_finite_rows(view, trace.number) for view in _views(inputs)]).all(0)
    from_input = not bool(rows.all())
    if trace.found and trace.found[1] is not model:
        order = trace.found[0]
        where, rows = trace.describe_output(rows, from_input)
    elif not finite:
        order = trace.calls + 1
        bad = [name for name, loss in losses.items() for t in _tensors(loss) if not t.isfinite()]
        where = f'{" and ".join(bad)} (the outputs of all modules are finite)'
    elif trace.backward:
        order = trace.calls + 2
        where = (
            f'the gradient that reaches the output of {trace.describe(trace.backward[0])}; '
            'the forward pass is finite'
        )
    elif grads is None:
        order = trace.calls + 3
        where = 'in the gradients; activation checkpointing hides the module'
    else:
        order = trace.calls + 4
        where = _describe_gradients(model, dict(zip(params, grads)))
    files = [str(getattr(s, 'img_path', '?')) for s in samples or ()] or ['not known']
    invalid = [path for path, good in zip(files, rows.tolist()) if not good]
    return _Finding((not from_input, order), where, invalid or files, broken)


class _Trace:
    """Note, within a ``with`` block, the first output and the gradients that are not finite.

    Args:
        model (nn.Module): The model; hooks on all its modules are removed at the end.
        number (int): Images N of the batch.
    """

    def __init__(self, model: nn.Module, number: int) -> None:
        self.model, self.number = model, number
        self.names = {module: name for name, module in model.named_modules()}
        self.calls = 0  # counts modules, and orders findings
        # call, module, and which images are finite in the output
        self.found: Optional[Tuple[int, nn.Module, Tensor]] = None
        self.backward: List[nn.Module] = []

    def __enter__(self) -> '_Trace':
        self.handles = [m.register_forward_hook(self._note_output) for m in self.names]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _note_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.calls += 1
        for value in _tensors(output):
            if self.found is None and not value.isfinite().all():
                # at once: a later operation may write over it
                self.found = self.calls, module, _finite_rows(value.detach(), self.number)
            if value.requires_grad and module is not self.model:
                value.register_hook(partial(self._note_gradient, module))

    def _note_gradient(self, module: nn.Module, grad: Tensor) -> None:
        if not grad.isfinite().all():
            self.backward.append(module)

    def describe(self, module: nn.Module) -> str:
        """Return name and class of a module."""
        return f'{self.names[module]} ({type(module).__name__})'

    def describe_output(self, rows: Tensor, from_input: bool) -> Tuple[str, Tensor]:
        """Return the words for the output that was found, and N, which images are finite there.

        Args:
            rows (Tensor): N, which images are finite as they enter the model.
            from_input (bool): Whether one of them is not.
        """
        _, module, rows_there = self.found
        where = f'the output of {self.describe(module)}'
        if from_input:
            where = f'images that hold NaN or Inf as they enter the model, and with them {where}'
            return where, rows
        own = _first_invalid(dict(module.named_parameters(), **dict(module.named_buffers())))
        if own:
            return f'{where}, whose own {own}', rows
        if self._in_momentum_encoder(module) and get_world_size() > 1:
            # BatchNorm there sees images of all processes
            return where, torch.ones_like(rows_there)
        return where, rows_there

    def _in_momentum_encoder(self, module: nn.Module) -> bool:
        encoders = [m for m in self.names if isinstance(m, MomentumEncoder)]
        return any(module is part for encoder in encoders for part in encoder.modules())


def _describe_gradients(model: nn.Module, grads: Dict[str, Optional[Tensor]]) -> str:
    bad = _first_invalid({name: grad for name, grad in grads.items() if grad is not None})
    if bad:
        return f'the gradient of {bad}'
    written = _first_invalid(dict(model.named_buffers()))
    if written:
        return f'{written} after the forward pass'
    return 'not to be found, as the batch gave finite values when it was run once more'


def _finite_rows(value: Tensor, number: int) -> Tensor:
    """Return N bools: whether an image's part of a tensor is finite; all are True where the parts
    are not known."""
    if value.dim() < 2 or len(value) % number:
        return torch.ones(number, dtype=torch.bool, device=value.device)
    return value.isfinite().reshape(number, -1).all(1)


def _first_invalid(tensors: Dict[str, Any]) -> str:
    """Name the first tensor that is not finite, and its value; '' if all are finite."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            kind = 'NaN' if value.isnan().any() else 'Inf'
            return f'{name} holds {kind}'
    return ''


def _views(inputs: Any) -> List[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a nested output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (list, tuple, dict)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from _tensors(item)


def _describe_last_checkpoint(runner: Runner) -> str:
    last = latest_complete_checkpoint(runner.work_dir)
    return f'The last checkpoint, {last}, is good.' if last else 'There is no checkpoint yet.'
