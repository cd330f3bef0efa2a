# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
