# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
# The classic config of this name, for `with read_base()`; every file here says just this.
globals().update(__import__('mmdense').compat.classic_config())
