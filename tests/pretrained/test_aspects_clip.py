"""The bundled dual encoder: loads as any CLIP does, is small and fast, and has learned something."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

import recbole_perpeft
from recbole_perpeft.data.aspects.drawing import ASPECTS, draw_image, draw_title

FOLDER = Path(recbole_perpeft.__file__).parent / "pretrained" / "aspects-clip"
N_PAIRS = 300


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return CLIPModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def vectors(model, tokenizer) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, int]]]:
    """Normalised vectors of newly drawn pictures and titles, and the values drawn."""
    rng = np.random.default_rng(987_654)
    values = [{name: int(rng.integers(len(aspect))) for name, aspect in ASPECTS.items()} for _ in range(N_PAIRS)]
    described = json.loads((FOLDER / "preprocessor_config.json").read_text())
    side = described["size"]["shortest_edge"]
    images = [
        Image.fromarray(draw_image(rng, chosen, 48)).resize((side, side), described["resample"]) for chosen in values
    ]
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(described[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    titles = tokenizer([draw_title(rng, chosen) for chosen in values], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=(pixels * described["rescale_factor"] - mean) / std, **titles)
    return F.normalize(output.image_embeds, dim=-1), F.normalize(output.text_embeds, dim=-1), values


def test_files_are_small_and_need_no_code_or_pickle():
    names = {file.name for file in FOLDER.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (FOLDER / "model.safetensors").stat().st_size <= 1_000_000


def test_unseen_pictures_find_their_titles(vectors):
    images, texts, _ = vectors
    for scores in (images @ texts.T, texts @ images.T):
        rank = (scores > scores.diagonal()[:, None]).sum(dim=1)
        assert (rank == 0).float().mean() > 0.6  # by chance 0.003
        assert (rank < 10).float().mean() > 0.95


def test_vectors_hold_the_aspects_unevenly(vectors):
    images, _, values = vectors
    alike = images @ images.T
    gaps = {}
    for aspect in ASPECTS:
        value = torch.tensor([chosen[aspect] for chosen in values])
        same = value[:, None] == value[None, :]
        gaps[aspect] = float(alike[same & ~torch.eye(N_PAIRS, dtype=torch.bool)].mean() - alike[~same].mean())
    assert gaps["colour"] > 0.1
    assert gaps["pattern"] < 0.3 * gaps["colour"]


def test_tokenizer_knows_every_title_and_survives_unknown_words(tokenizer):
    rng = np.random.default_rng(4)
    for _ in range(300):
        title = draw_title(rng, {name: int(rng.integers(len(aspect))) for name, aspect in ASPECTS.items()})
        ids = tokenizer(title)["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id in tokenizer("Zinc bucket")["input_ids"]


def test_a_catalogue_is_encoded_quickly(model):
    pixels, ids = torch.rand(1200, 3, 24, 24), torch.randint(4, 100, (1200, 14))
    ids[:, -1] = model.config.text_config.eos_token_id
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with torch.no_grad():
            model(pixel_values=pixels, input_ids=ids)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0  # about 0.13 on one core
