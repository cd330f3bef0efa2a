# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from functools import wraps
from typing import Any, Callable, Optional

import torch


class StepGuard:
    """Call functions before and after each step of one optimizer, until it is removed.

    PyTorch's own step hooks do not serve: version 2.1 never calls them once anything in the
    process was compiled, and every version calls them twice where a step calls ``super().step()``.
    With a gradient scaler the gradients are unscaled by then, and a step that the scaler skips
    calls nothing.

    An optimizer may have several guards: the last one is called first before a step, and last
    after it.

    Args:
        optimizer (Optimizer): The optimizer; its attribute ``step`` is replaced.
        before (Callable): Called with the optimizer before a step.
        after (Callable, optional): Called with the optimizer after a step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        before: Callable,
        after: Optional[Callable] = None,
    ) -> None:
        self.before, self.after = before, after
        step = optimizer.step
        self.step = step if hasattr(step, 'guards') else _guard_steps(optimizer)
        self.step.guards.append(self)

    def remove(self) -> None:
        """Call the functions no more; the last guard gives the optimizer back its own step."""
        self.step.guards.remove(self)
        if not self.step.guards:
            self.step.restore()


def _guard_steps(optimizer: torch.optim.Optimizer) -> Callable:
    """Replace the step of an optimizer by one that calls guards."""
    own = vars(optimizer).get('step')  # PyTorch's schedules replace it too
    step, guards = optimizer.step, []

    @wraps(step)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        present = list(guards)
        for guard in reversed(present):
            guard.before(optimizer)
        result = step(*args, **kwargs)
        for guard in present:
            if guard.after is not None:
                guard.after(optimizer)
        return result

    def restore() -> None:
        if vars(optimizer).get('step') is guarded:
            del optimizer.step
            if own is not None:
                optimizer.step = own

    guarded.guards, guarded.restore = guards, restore
    optimizer.step = guarded
    return guarded
