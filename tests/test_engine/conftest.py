# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

# runs.py, for these tests and for the processes that they start
sys.path.insert(0, str(Path(__file__).parent))
