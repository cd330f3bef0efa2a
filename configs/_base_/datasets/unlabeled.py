# Images without labels: a folder, a zip, an LMDB, or several (docs/data.md). A data set's file adds
# the place of the images. A recipe adds the batch size and the pipeline of a file in views/:
# train_dataloader = dict(batch_size=…, dataset=dict(pipeline=_base_.train_pipeline))
train_dataloader = dict(
    num_workers=8,
    drop_last=True,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='mmdense.default_collate'),
    dataset=dict(type='UnlabeledDataset'),
)
