default_scope = 'mmdense'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # writes events.jsonl next to the log: `mmdense report` reads it
    events=dict(type='EventLogHook'),
    # whole files only, whenever the run is killed
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # a resumed run is that which was interrupted, to the last bit
    exact_resume=dict(type='ExactResumeHook'),
    # on SIGTERM and SIGUSR1 saves and ends
    preemption=dict(type='PreemptionHook'),
    # moves the twin once a step of the optimizer, where gradients are accumulated
    momentum_twin=dict(type='MomentumEncoderHook'),
    # reads the losses when a line is logged: to read one is to wait for the device
    loss_log=dict(type='LossLogHook'),
    # skips steps that are not finite, and says where they come from
    invalid_values=dict(type='CheckInvalidValuesHook', max_in_a_row=5),
    # names and counts files that cannot be read; an error if they are many
    unreadable_images=dict(type='UnreadableImagesHook', max_ratio=0.01),
    # says how full a key queue is and what chance level is; silent without one
    key_queue_log=dict(type='KeyQueueLogHook'),
    # logs how features are spread, and warns when they collapse
    health=dict(type='HealthMonitorHook', interval=50),
    # writes work_dir/backbone.pth when training ends
    backbone_export=dict(type='BackboneExportHook'),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
log_processor = dict(window_size=10)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
