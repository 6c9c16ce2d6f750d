"""Trains ``aspects-clip``, the small dual encoder that ships with the package, from nothing.

It learns to match pictures and titles of made-up products (`recbole_perpeft.data.aspects.drawing`) that are drawn
with seeds of their own: it sees no product of the bundled data set and no purchase. As captions on the web do, the
titles it learns from always name the kind of product, mostly its colour and less often its pattern and setting, so
its vectors hold the aspects unevenly, as those of large pretrained models do.

    python scripts/train_aspects_clip.py --output=recbole_perpeft/pretrained/aspects-clip
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from recbole_perpeft.core.whole import clear, draft_of, put_in_place
from recbole_perpeft.data.aspects.drawing import ASPECTS, draw_image, draw_title, title_words

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
DRAWN_SIDE, IMAGE_SIDE, PATCH = 48, 24, 8
WIDTH, LAYERS, HEADS, TEXT_LENGTH = 48, 2, 2, 16
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
# How often the titles to learn from name each aspect.
NAMED = {"shape": 1.0, "colour": 0.9, "pattern": 0.6, "setting": 0.6}
TRAIN_SEED, UNSEEN_SEED = 71, 72


@dataclass(frozen=True)
class Products:
    """Drawn products: the index of their value in every aspect, and normalised pictures [n, 3, 24, 24]."""

    values: list[dict[str, int]]
    pixels: Tensor


def draw_products(n: int, seed: int) -> Products:
    """Draws ``n`` products with values at random, the pictures resized as the saved processor says."""
    rng = np.random.default_rng(seed)
    values = [{name: int(rng.integers(len(aspect))) for name, aspect in ASPECTS.items()} for _ in range(n)]
    pixels = torch.empty(n, 3, IMAGE_SIDE, IMAGE_SIDE)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for row, chosen in enumerate(values):
        image = Image.fromarray(draw_image(rng, chosen, DRAWN_SIDE))
        image = image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
        pixels[row] = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    return Products(values, pixels)


def draw_titles(rng: np.random.Generator, products: Products, rows: np.ndarray, named: dict[str, float]) -> list[str]:
    """New titles for some products; aspect ``a`` is named with probability ``named[a]``."""
    left_out = {name: rng.random(len(rows)) >= share for name, share in named.items()}
    return [
        draw_title(rng, products.values[row], frozenset(name for name in left_out if left_out[name][place]))
        for place, row in enumerate(rows)
    ]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words: the vocabulary of the titles."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *title_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end = SPECIAL["bos_token"], SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained CLIP of the size of ``aspects-clip``."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"image_size": IMAGE_SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH))


def encode_titles(tokenizer: PreTrainedTokenizerFast, titles: list[str]) -> dict[str, Tensor]:
    return dict(tokenizer(titles, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"))


def train(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, products: Products, options: argparse.Namespace
) -> None:
    """Contrastive training with a one-cycle learning rate; titles are worded anew at every step."""
    rng = np.random.default_rng(TRAIN_SEED + 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, options.steps, pct_start=0.1)
    model.train()
    progress = trange(options.steps, desc="training aspects-clip", unit="step")
    for step in progress:
        rows = rng.choice(len(products.values), size=options.batch_size, replace=False)
        titles = encode_titles(tokenizer, draw_titles(rng, products, rows, NAMED))
        loss = model(pixel_values=products.pixels[torch.from_numpy(rows)], **titles, return_loss=True).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def report(model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prints how well unseen pictures and titles find each other, and which aspects make pictures alike."""
    model.eval()
    products = draw_products(1000, UNSEEN_SEED)
    titles = draw_titles(np.random.default_rng(UNSEEN_SEED + 1), products, np.arange(1000), dict.fromkeys(NAMED, 1.0))
    output = model(pixel_values=products.pixels, **encode_titles(tokenizer, titles))
    images, texts = (F.normalize(vectors, dim=-1) for vectors in (output.image_embeds, output.text_embeds))
    target = torch.arange(1000)
    for label, scores in (("title of picture", images @ texts.T), ("picture of title", texts @ images.T)):
        rank = (scores > scores.diagonal()[:, None]).sum(dim=1)
        shares = ", ".join(f"in the first {k}: {(rank < k).float().mean():.3f}" for k in (1, 10))
        print(f"{label} among 1000 unseen pairs: {shares}")
    for label, vectors in (("pictures", images), ("titles", texts)):
        alike = vectors @ vectors.T
        apart = ~torch.eye(1000, dtype=torch.bool)
        for aspect in ASPECTS:
            value = torch.tensor([chosen[aspect] for chosen in products.values])
            same = value[:, None] == value[None, :]
            gap = alike[same & apart].mean() - alike[~same].mean()
            nearest = (value[(alike - 2.0 * torch.eye(1000)).argmax(dim=1)] == value[target]).float().mean()
            print(f"{label}: same {aspect} adds {gap:.3f} to the cosine; nearest neighbours share it: {nearest:.3f}")


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model, tokenizer and processor in Hugging Face format; the folder is replaced as a whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder)
    clear(draft)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIDE},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    (draft / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    tokenizer_config = draft / "tokenizer_config.json"
    described = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    described["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
    tokenizer_config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for file in draft.iterdir():
        file.chmod(0o644)
    put_in_place(draft, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Trains aspects-clip on drawn products.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write, replaced if it exists")
    parser.add_argument("--n_products", type=int, default=20_000, help="number of products to draw and learn from")
    parser.add_argument("--steps", type=int, default=2_000, help="training steps")
    parser.add_argument("--batch_size", type=int, default=256, help="pairs a step")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="highest learning rate")
    options = parser.parse_args()
    torch.manual_seed(TRAIN_SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, draw_products(options.n_products, TRAIN_SEED), options)
    report(model, tokenizer)
    save(model.eval(), tokenizer, options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {model.num_parameters():,} parameters, {size:,} bytes")


if __name__ == "__main__":
    main()
