# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pretrain a backbone: python tools/train.py CONFIG [--work-dir DIR] …"""

from mmdense.utils.log_level import suppress_third_party_warnings
from mmdense.utils.slow_imports import shorten_imports

shorten_imports()  # before the imports below
suppress_third_party_warnings()

from mmdense.engine.launch import train
from mmdense.engine.training import prepare_training, train_parser


def main():
    train(prepare_training(train_parser().parse_args()))


if __name__ == '__main__':
    main()
