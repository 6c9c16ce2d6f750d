"""What transformers and peft make of items, without this package."""

import torch
from peft import PeftModel
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from recbole_perpeft.pretrained.dual import locate_foundation


def vectors_by_peft_alone(adapter, tokens, data):
    """Content vectors of items, from the photos and titles and a plain CLIP with an adapter."""
    clip = locate_foundation("aspects-clip")
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip), adapter).eval()
    titles = dict(line.split("\t") for line in (data / "aspects.item").read_text().splitlines()[1:])
    images = [Image.open(data / "images" / f"{token}.png").convert("RGB") for token in tokens]
    pixels = CLIPImageProcessor.from_pretrained(clip)(images, return_tensors="pt")
    texts = AutoTokenizer.from_pretrained(clip)([titles[token] for token in tokens], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**pixels, **texts)
    return torch.cat([normalize(output.image_embeds, dim=1), normalize(output.text_embeds, dim=1)], dim=1)
