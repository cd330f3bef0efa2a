# The study on one GPU: views twice as wide, ten times as many of them, and batch, precision and the
# rest as `mmdense pretrain` chooses them there. Tasks and probes are those of cpu.py. `--epochs`
# is how long there is time for. Give it results of its own: `--results FOLDER`.
_base_ = './cpu.py'

pretrain = dict(
    device='cuda',
    size=192,
    batch_size=None,  # the rules'
    epochs=100,
    workers=8,
    minutes=dict(mocov2=10, densecl=10, pixpro=10, slotcon=15, detco=15),
    evaluation=dict(interval=20),
)
