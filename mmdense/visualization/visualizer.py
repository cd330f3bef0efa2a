# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
from mmengine.visualization import Visualizer as _Visualizer

from mmdense.registry import VISUALIZERS


@VISUALIZERS.register_module()
class Visualizer(_Visualizer):
    """Make MMEngine's figure when something is drawn, and import matplotlib only then.

    A run logs numbers and draws nothing.

    Args:
        name (str): Name of the instance. Defaults to 'visualizer'.
        image (np.ndarray, optional): H×W×3, RGB, to draw on. Defaults to None.
        kwargs: Arguments of MMEngine's class.
    """

    _FIGURE = ('fig_save_canvas', 'fig_save', 'ax_save', 'dpi')
    _postponed = True

    def __init__(
        self, name: str = 'visualizer', image: Optional[np.ndarray] = None, **kwargs: Any
    ) -> None:
        super().__init__(name, None, **kwargs)
        for attribute in self._FIGURE:
            self.__dict__.pop(attribute, None)  # see __getattr__
        self._postponed = False
        if image is not None:
            self.set_image(image)

    def _initialize_fig(self, fig_cfg: dict) -> tuple:
        if self._postponed:
            return None, SimpleNamespace(get_dpi=lambda: None), None
        return super()._initialize_fig(fig_cfg)

    def __getattr__(self, name: str) -> Any:
        """Make the figure for the first attribute of it that is asked for."""
        if name not in self._FIGURE:
            raise AttributeError(f'{type(self).__name__!r} has no attribute {name!r}')
        canvas, figure, axes = self._initialize_fig(self.fig_save_cfg)
        self.fig_save_canvas, self.fig_save, self.ax_save = canvas, figure, axes
        self.dpi = figure.get_dpi()
        return self.__dict__[name]
