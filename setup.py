# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list:
    """The lines of requirements/<name>.txt without their comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    lines = (line.split('#')[0].strip() for line in lines)
    return [line for line in lines if line]


def version() -> str:
    scope = {}
    exec((ROOT / 'mmdense' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


readme = ROOT / 'README.md'
setup(
    name='mmdense',
    version=version(),
    description='Self-supervised pretraining for dense prediction with OpenMMLab',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author='mmdense authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, self-supervised learning, dense prediction',
    python_requires='>=3.8',
    # Folders without an __init__.py too: MMEngine reads pure-Python configs from such.
    packages=find_namespace_packages(include=['mmdense', 'mmdense.*']),
    # mmdense/.mim comes with MANIFEST.in: links in the tree, real files in wheel and sdist.
    include_package_data=True,
    entry_points={'console_scripts': ['mmdense = mmdense.cli:main']},
    install_requires=requirements('runtime'),
    extras_require={
        'optional': requirements('optional'),
        'proposals': ['scikit-image'],  # Felzenszwalb's segments in tools/make_proposals.py
        'tests': requirements('tests'),
        'all': requirements('runtime') + requirements('optional') + requirements('tests'),
    },
    zip_safe=False,
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
