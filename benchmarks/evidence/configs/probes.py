# What was looked at to find why PixPro and SlotCon are worth less to a segmenter than MoCo v2:
# docs/evidence.md, "PixPro learns later". Results lie with those of cpu.py; what is not in it:
#     study.py --config benchmarks/evidence/configs/probes.py --only '*/pixpro-*/*'
#     study.py --config benchmarks/evidence/configs/probes.py --only 'camvid-*10/pixpro/*'
_base_ = './cpu.py'

_lars = {
    'optim_wrapper.optimizer.type': 'mmdense.LARS',
    'optim_wrapper.optimizer.lr': 0.707107,
    'optim_wrapper.optimizer.weight_decay': 1e-5,
}
_views = 'train_dataloader.dataset.pipeline.1.transforms'


def _byol(sigma):
    """PixPro's augmentation: two views of their own blur, the second solarised."""
    crop = dict(
        type='RandomResizedCrop', scale=96, crop_ratio_range=(0.2, 1.0), interpolation='bilinear'
    )
    first = [
        crop,
        dict(type='RandomFlip', prob=0.5),
        dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, prob=0.8),
        dict(type='RandomGrayscale', prob=0.2),
    ]
    second = [
        *first,
        dict(type='GaussianBlur', sigma=sigma, prob=0.1),
        dict(type='Solarize', thr=128, prob=0.2),
    ]
    return {_views: [[*first, dict(type='GaussianBlur', sigma=sigma, prob=1.0)], second]}


def _moco():
    """MoCo v2's augmentation of every view."""
    view = [
        dict(
            type='RandomResizedCrop',
            scale=96,
            crop_ratio_range=(0.2, 1.0),
            interpolation='bilinear',
        ),
        dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
        dict(type='RandomGrayscale', prob=0.2),
        dict(type='GaussianBlur', sigma=(0.1, 2.0), prob=0.5),
        dict(type='RandomFlip', prob=0.5),
    ]
    return {_views: [view, view]}


_two = {'train_dataloader.dataset.pipeline.1.num_views': [1, 1]}
_recipe, _scaled = (
    (0.1, 2.0),
    (0.1 * 96 / 224, 2.0 * 96 / 224),
)  # of views of 224 px, and as much of 96
_contrast = dict(_delete_=True, type='PixContrastHead', temperature=0.3, pos_ratio=0.7)
_probe = dict(task='camvid', frozen=True)
small = {
    '_delete_': True,
    'mocov2-lars': dict(_probe, method='mocov2', options=_lars),
    'mocov2-lars-byol': dict(_probe, method='mocov2', options={**_lars, **_two, **_byol(_recipe)}),
    'pixpro-full': dict(
        _probe, method='pixpro', options={'model.backbone.zero_init_residual': False}
    ),
    'pixpro-lr4': dict(_probe, method='pixpro', options={'optim_wrapper.optimizer.lr': 4.0}),
    'pixpro-twin': dict(_probe, method='pixpro', options={'model.momentum': 0.05}),
    # the twin normalises by running statistics
    'pixpro-running': dict(
        _probe,
        method='pixpro',
        options={
            'custom_imports': dict(imports=['benchmarks.evidence.twin_statistics']),
            'custom_hooks': [dict(type='RunningTwinHook')],
        },
    ),
    'pixpro-moco': dict(_probe, method='pixpro', options=_moco()),
    'pixpro-full-moco': dict(
        _probe, method='pixpro', options={'model.backbone.zero_init_residual': False, **_moco()}
    ),
    'pixpro-blur': dict(_probe, method='pixpro', options=_byol(_scaled)),
    'mocov2-lars-blur': dict(_probe, method='mocov2', options={**_lars, **_two, **_byol(_scaled)}),
    # three times as long, with the warm-up and cosine of so many epochs
    **{
        f'{method}-long': dict(_probe, method=method, epochs=30, minutes=dict(mocov2=54, pixpro=72))
        for method in ('pixpro', 'mocov2')
    },
    'pixcontrast': dict(_probe, method='pixpro', options={'model.head': _contrast}),
    # by the rules as they are, blur in proportion to the views
    **{
        f'{method}-rules': dict(_probe, method=method, without=[])
        for method in ('mocov2', 'densecl', 'slotcon', 'detco')
    },
}

_camvid = _base_.tasks.camvid
tasks = {
    # the backbone as it is, its BatchNorm too
    'camvid-frozen': dict(
        _camvid,
        minutes=8,
        options={
            **_camvid.options,
            'model.backbone.frozen_stages': 4,
            'model.backbone.norm_eval': True,
        },
    ),
    # the same once more, with other random numbers: the same images and weights
    'camvid-again': dict(_camvid, seed=1),
    # twice as long
    'camvid-long': dict(
        _camvid,
        minutes=26,
        options={**_camvid.options, 'train_cfg.max_iters': 2000, 'param_scheduler.0.end': 2000},
    ),
}
