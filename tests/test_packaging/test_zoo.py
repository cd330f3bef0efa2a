# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""model-index.yml, the metafiles, and what else says the same."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
import yaml
from mmengine.config import Config

import mmdense
from mmdense.utils.download import hash_in_name

REPO = Path(__file__).resolve().parents[2]
METAFILES = yaml.safe_load((REPO / 'model-index.yml').read_text())['Import']
CONTENT = {file: yaml.safe_load((REPO / file).read_text()) for file in METAFILES}
MODELS = [model for content in CONTENT.values() for model in content['Models']]
# Neither pretrains by a published recipe.
NO_RECIPES = {'densecl_resnet18_demo', 'slotcon_unsup-seg_camvid'}
KEYS = {'Name', 'Alias', 'Metadata', 'In Collection', 'Results', 'Config'}
KEYS |= {'Weights', 'Authors Weights', 'SHA256'}


def test_every_algorithm_has_a_metafile():
    assert set(METAFILES) == {
        str(path.relative_to(REPO)) for path in (REPO / 'configs').rglob('metafile.yml')
    }
    folders = {p.name for p in (REPO / 'configs').iterdir() if p.is_dir()}
    assert {Path(file).parent.name for file in METAFILES} == folders - {
        '_base_',
        'small',
        'transfer',
    }


@pytest.mark.parametrize('file', METAFILES)
def test_every_recipe_has_an_entry(file):
    """And every short form is one's alias."""
    folder = REPO / Path(file).parent
    entries = {model['Name']: model for model in CONTENT[file]['Models']}
    short = {}
    for path in folder.glob('*.py'):
        if '_r50_' in path.name:
            (base,) = re.findall(r"^_base_ = '(\S+)\.py'$", path.read_text())
            assert path.read_text().count('\n') == 1
            short[path.stem] = base
    recipes = {path.stem for path in folder.glob('*.py')} - set(short) - NO_RECIPES
    assert set(entries) == recipes
    aliases = {alias: name for name, e in entries.items() for alias in e.get('Alias', [])}
    assert aliases == short
    for name, base in short.items():  # the ones at the top mean the same
        (top,) = re.findall(r"^_base_ = '\./(\S+)\.py'$", (REPO / f'configs/{name}.py').read_text())
        assert top == f'{folder.name}/{base}'


def test_names_are_unique():
    names = [name for model in MODELS for name in (model['Name'], *model.get('Alias', []))]
    assert len(set(names)) == len(names)
    assert sorted(model['Name'] for model in MODELS) == mmdense.list_models()


@pytest.mark.parametrize('file', METAFILES)
def test_collections(file):
    (collection,) = CONTENT[file]['Collections']
    assert (REPO / collection['README']).parent == (REPO / file).parent
    assert re.fullmatch(r'https://arxiv\.org/abs/\d{4}\.\d{5}', collection['Paper']['URL'])
    readme = (REPO / collection['README']).read_text()
    assert collection['Paper']['URL'] in readme and collection['Paper']['Title'] in readme
    assert {model['In Collection'] for model in CONTENT[file]['Models']} == {collection['Name']}


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_entry(model):
    assert set(model) <= KEYS and Path(model['Config']).stem == model['Name']
    config = Config.fromfile(str(REPO / model['Config']))
    about = model['Metadata']
    assert about['Epochs'] == config.train_cfg.max_epochs
    assert about['Batch Size'] == config.auto_scale_lr.base_batch_size
    assert ('ImageNet' in about['Training Data']) == model['Name'].endswith('in1k')
    for result in model.get('Results', []):
        assert set(result) == {'Task', 'Dataset', 'Metrics'}
        assert all(20 < value < 100 for value in result['Metrics'].values())
    # mmengine.hub and mim take this: a checkpoint of mmpretrain's, its hash in its name
    if 'Weights' in model:
        url = model['Weights']
        assert url.startswith('https://download.openmmlab.com/') and hash_in_name(url)
        assert url.rsplit('/', 1)[1].startswith(model['Name'])
    if 'Authors Weights' in model:
        url = urlparse(model['Authors Weights'])
        assert url.scheme == 'https' and url.netloc in HOSTS
        assert re.fullmatch(HOSTS[url.netloc], f'{url.path}?{url.query}')


# What downloads, and is no page that links to it.
HOSTS = {
    'huggingface.co': r'/[\w.-]+/[\w.-]+/resolve/main/[\w.-]+\.pth\?',
    'drive.usercontent.google.com': r'/download\?export=download&confirm=t&id=[\w-]{33}',
    'connecthkuhk-my.sharepoint.com': r'/:u:/g/personal/\w+/[\w-]{46}\?download=1',
}


@pytest.mark.parametrize('file', METAFILES)
def test_readme_links_the_same_files(file):
    """Those for a browser, where the two differ."""
    readme = (REPO / Path(file).parent / 'README.md').read_text()
    rows = {
        re.match(r'\| \[(.+?)\]\((.+?)\.py\)', line).group(1): line
        for line in readme.splitlines()
        if line.startswith('| [')
    }
    assert set(rows) == {model['Name'] for model in CONTENT[file]['Models']}
    for model in CONTENT[file]['Models']:
        row = rows[model['Name']]
        linked = {_identity(url) for url in re.findall(r'\((https://\S+?)\)', row)}
        urls = [model[key] for key in ('Weights', 'Authors Weights') if key in model]
        assert linked == {_identity(url) for url in urls}
        assert f'({model["Name"]}.py)' in row


def _identity(url):
    url = urlparse(url)
    if url.netloc.endswith('google.com'):
        return parse_qs(url.query)['id'][0] if url.query else url.path.split('/')[-2]
    return url.netloc + url.path


# As in the papers: VOC detection AP, VOC segmentation mIoU; COCO box AP; COCO box and mask AP.
PUBLISHED = {
    'densecl_resnet50_8xb32-coslr-800e_coco': [56.7, 67.5],
    'densecl_resnet50_8xb32-coslr-1600e_coco': [57.2, 68.0],
    'densecl_resnet50_8xb32-coslr-200e_in1k': [58.7, 69.4],
    'densecl_resnet101_8xb32-coslr-200e_in1k': [61.3, 74.1],
    'detco_resnet50_8xb32-coslr-200e_in1k': [39.4, 39.5, 38.0, 57.8],
    'detco-aa_resnet50_8xb32-coslr-200e_in1k': [39.8, 40.1, 38.4],
    'pixpro_resnet50_8xb128-coslr-100e_in1k': [40.8, 58.8, 40.0],
    'pixpro_resnet50_8xb128-coslr-400e_in1k': [60.2, 40.5],
    'pixpro-instance_resnet50_8xb128-coslr-100e_in1k': [41.3],
    'pixpro-instance_resnet50_8xb128-coslr-400e_in1k': [41.4],
    'slotcon_resnet50_8xb64-coslr-800e_coco': [41.0, 37.0],
    'slotcon_resnet50_8xb64-coslr-800e_cocoplus': [41.8, 37.8],
    'slotcon_resnet50_8xb64-coslr-100e_in1k': [41.4, 37.2],
    'slotcon_resnet50_8xb64-coslr-200e_in1k': [41.8, 37.8],
}


def test_only_published_results():
    found = {
        model['Name']: [value for r in model['Results'] for value in r['Metrics'].values()]
        for model in MODELS
        if 'Results' in model
    }
    assert found == PUBLISHED


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_mim_finds_the_config_by_its_file_name(model):
    """It refuses a name that several files in the package have."""
    package = REPO / 'mmdense'
    folders = (package / '.mim' / 'configs', package / 'configs')
    name = Path(model['Config']).name
    assert len([path for folder in folders for path in folder.rglob(name)]) == 1


def test_the_document_names_all(repo):
    text = (repo / 'docs' / 'model_zoo.md').read_text()
    rows = dict(re.findall(r'^\| (\S+) \|.*\| (.+?) \|$', text, flags=re.MULTILINE))
    kinds = {'Weights': 'full', 'Authors Weights': "authors'"}
    for model in MODELS:
        there = [kind for key, kind in kinds.items() if key in model]
        assert rows.get(model['Name']) == (', '.join(there) or 'none')
