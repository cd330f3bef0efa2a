# The same as Pair DETR: a second decoder in training, and nothing else is different. backbone.pth
# holds the Conditional DETR, without it.
_base_ = './conditional-detr_r50_2-layers_bccd.py'

model = dict(_delete_=True, type='mmdense.PairDETR', detector=_base_.model)
default_hooks = dict(backbone_export=dict(type='mmdense.BackboneExportHook'))
