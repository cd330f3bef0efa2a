# Images without labels; the augmentation's file adds the pipeline and the batch size,
# the data set's where the images are: a folder, a zip, an LMDB, or several (docs/data.md).
train_dataloader = dict(
    num_workers=8,
    drop_last=True,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='mmdense.default_collate'),
    dataset=dict(type='UnlabeledDataset'),
)
