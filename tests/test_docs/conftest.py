# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

# pages.py
sys.path.insert(0, str(Path(__file__).parent))
