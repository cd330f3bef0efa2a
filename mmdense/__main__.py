# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .cli import main

if __name__ == '__main__':
    main()
