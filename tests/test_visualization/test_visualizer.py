# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer as MMEngines

from mmdense.visualization import Visualizer


def test_the_figure_is_made_when_something_is_drawn():
    visualizer = Visualizer(vis_backends=[])
    assert 'fig_save' not in vars(visualizer)
    theirs, image = MMEngines('theirs'), np.full((20, 30, 3), 7, np.uint8)
    for each in (visualizer, theirs):
        each.set_image(image)
        each.draw_bboxes(np.array([2, 2, 9, 9]))
    assert visualizer.dpi == theirs.dpi
    assert (visualizer.get_image() == theirs.get_image()).all()
    assert (visualizer.get_image() != image).any()


def test_an_image_at_once():
    image = np.full((20, 30, 3), 7, np.uint8)
    visualizer = Visualizer(image=image, fig_save_cfg=dict(frameon=False, dpi=50))
    assert visualizer.dpi == 50
    assert (visualizer.get_image() == image).all()


def test_runs_of_mmdense_take_it():
    built = VISUALIZERS.build(dict(type='mmdense.Visualizer', name='built'))
    assert type(built) is Visualizer and MMEngines.get_current_instance() is built
