# Deformable DETR R50 on 1 % of COCO's images, 2000 epochs of 8 × 3 images at a constant learning
# rate, from a detector that was pretrained on all of COCO without labels. Seed 42 chooses the
# images, as in DETReg's code.
_base_ = './deformable-detr_r50_50e_coco.py'

train_dataloader = dict(
    batch_size=3,
    dataset=dict(
        _delete_=True,
        type='mmdense.RandomSubset',
        share=0.01,
        dataset=_base_.train_dataloader.dataset,
    ),
)
train_cfg = dict(max_epochs=2000, val_interval=100)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=24)
