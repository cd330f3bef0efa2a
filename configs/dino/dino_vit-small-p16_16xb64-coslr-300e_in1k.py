# The longer run of the readme of the authors' repository: a teacher that becomes less sharp, and
# prototypes whose lengths are learned.
_base_ = './dino_vit-small-p16_8xb64-coslr-100e_in1k.py'

model = dict(
    teacher_temperature=0.07,
    warmup_teacher_temperature_epochs=30,
    neck=dict(norm_last_layer=False),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
