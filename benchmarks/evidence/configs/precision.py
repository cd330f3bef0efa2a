# Whether bfloat16 on a CPU learns what float32 learns: docs/scaling.md, "Mixed precision". Views
# are small: a CPU without units for bfloat16 takes twice the time.
#     study.py --config benchmarks/evidence/configs/precision.py --only '*/densecl-64px*/*'
_base_ = './cpu.py'

seeds = [0, 1, 2]
_run = dict(method='densecl', size=64, epochs=5, evaluation=None, task='camvid', frozen=True)
small = {
    '_delete_': True,
    'densecl-64px': _run,
    'densecl-64px-bfloat16': dict(
        _run, options={'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    ),
}
