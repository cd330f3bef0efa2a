default_scope = 'mmdense'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # writes events.jsonl next to the log: `mmdense report` reads it
    events=dict(type='EventLogHook'),
    # writes complete files only, whenever the run is killed
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # makes a resumed run equal to an uninterrupted one, to the last bit
    exact_resume=dict(type='ExactResumeHook'),
    # saves and ends on SIGTERM and SIGUSR1
    preemption=dict(type='PreemptionHook'),
    # updates the momentum encoder once for each step of the optimizer, also under accumulation
    momentum_twin=dict(type='MomentumEncoderHook'),
    # reads the losses only when they are logged, since reading waits for the device
    loss_log=dict(type='LossLogHook'),
    # skips steps with values that are not finite, and names the module
    invalid_values=dict(type='CheckInvalidValuesHook', max_in_a_row=5),
    # names and counts files that cannot be read; raises an error if they are many
    unreadable_images=dict(type='UnreadableImagesHook', max_ratio=0.01),
    # logs how full a key queue is, and chance level; does nothing without a queue
    key_queue_log=dict(type='KeyQueueLogHook'),
    # logs the spread of the features, and warns when they collapse
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
