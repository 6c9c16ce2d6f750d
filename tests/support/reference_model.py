"""A miniature of the model of PerPEFT's authors, written from its description: it shares no code with the package."""

import copy
import csv
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

import recbole_perpeft

CLIP = Path(recbole_perpeft.__path__[0]) / "pretrained" / "aspects-clip"
LENGTH, WIDTH, HEADS, BLOCKS = 7, 16, 2, 3
ADAPTERS = {
    "lora": LoraConfig(r=3, lora_alpha=12, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "fc1"], feedforward_modules=["fc1"]),
}


@contextmanager
def double_by_default():
    """New tensors are of double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class PointwiseFeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv1d(WIDTH, WIDTH, kernel_size=1) for _ in range(2))

    def forward(self, states):
        inner = self.conv2(torch.relu(self.conv1(states.transpose(1, 2))))
        return inner.transpose(1, 2) + states


class ReferenceSASRec(nn.Module):
    def __init__(self, n_items):
        super().__init__()
        self.item_emb = nn.Embedding(n_items + 1, WIDTH, padding_idx=0)
        self.pos_emb = nn.Embedding(LENGTH + 1, WIDTH, padding_idx=0)
        self.attention_layernorms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(BLOCKS))
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS) for _ in range(BLOCKS))
        self.forward_layernorms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(BLOCKS))
        self.forward_layers = nn.ModuleList(PointwiseFeedForward() for _ in range(BLOCKS))
        self.last_layernorm = nn.LayerNorm(WIDTH, eps=1e-8)

    def last_state(self, history, item_vectors):
        """State after the newest item; pads stand in front, and attention sees them."""
        items = torch.tensor([0] * LENGTH + history)[-LENGTH:]
        positions = torch.arange(1, LENGTH + 1) * (items != 0)
        states = (item_vectors[items] * WIDTH**0.5 + self.pos_emb(positions)).unsqueeze(0)
        future = ~torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool))
        for norm, attention, second_norm, feed_forward in zip(
            self.attention_layernorms,
            self.attention_layers,
            self.forward_layernorms,
            self.forward_layers,
            strict=True,
        ):
            states = states.transpose(0, 1)
            query = norm(states)
            states = query + attention(query, states, states, attn_mask=future)[0]
            states = feed_forward(second_norm(states.transpose(0, 1)))
        return self.last_layernorm(states)[0, -1]


class ReferenceProjector(nn.Module):
    def __init__(self, content_size):
        super().__init__()
        wide = nn.Linear(content_size, 2 * WIDTH)
        self.projector = nn.Sequential(wide, nn.LayerNorm(2 * WIDTH, eps=1e-8), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.last_layernorm = nn.LayerNorm(WIDTH, eps=1e-8)

    def forward(self, content):
        return self.last_layernorm(self.projector(content))


def _jitter(module, seed):
    """Moves all weights, so that no zero or one hides an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def _rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


class Reference:
    """A model of the authors: one user model, and an adapter and a projector a group, on a data set."""

    def __init__(self, data_path, peft_type, n_modules):
        folder = data_path / "aspects"
        titles = dict(_rows(folder / "aspects.item"))
        log = sorted(_rows(folder / "aspects.inter"), key=lambda row: float(row[2]))
        self.users = list(dict.fromkeys(user for user, _, _ in log))
        items = sorted({item for _, item, _ in log})
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(4)).tolist()
        self.index = {item: place + 1 for item, place in zip(items, order, strict=True)}
        self.tokens = sorted(self.index, key=self.index.get)
        self.histories = {user: [self.index[item] for who, item, _ in log if who == user] for user in self.users}
        torch.manual_seed(0)
        self.sasrec = _jitter(ReferenceSASRec(len(items)), 1)
        self.sasrec.last_layernorm.weight.data *= 0.3  # scores of a size at which float32 is good to 1e-5
        images = [Image.open(next((folder / "images").glob(f"{item}.*"))).convert("RGB") for item in self.tokens]
        self.pixels = CLIPImageProcessor.from_pretrained(CLIP)(images, return_tensors="pt")
        self.texts = AutoTokenizer.from_pretrained(CLIP)(
            [titles[item] for item in self.tokens], padding=True, truncation=True, return_tensors="pt"
        )
        self.encoders, self.projectors = [], []
        for number in range(n_modules):
            clip = get_peft_model(CLIPModel.from_pretrained(CLIP), ADAPTERS[peft_type])
            self.encoders.append(_jitter(clip, 10 + number))
            self.projectors.append(_jitter(ReferenceProjector(2 * clip.config.projection_dim), 20 + number))

    @torch.no_grad()
    def item_vectors(self, module):
        """Vectors of the pad and all items; in double precision, so that all rounding is that of the package."""
        encoder, projector = self.encoders[module].double(), self.projectors[module].double()
        with double_by_default():  # the masks that old releases of transformers make, too
            output = encoder(pixel_values=self.pixels["pixel_values"].double(), **self.texts)
        content = torch.cat([output.image_embeds, output.text_embeds], dim=1)
        content = torch.cat([content.new_zeros(1, content.shape[1]), content])  # the pad's content is zero
        return 0.5 * projector(content) + self.sasrec.double().item_emb.weight

    @torch.no_grad()
    def user_vectors(self, histories, vectors):
        return torch.stack([self.sasrec.double().last_state(history, vectors) for history in histories])

    def scores(self, users, module):
        """Scores of all items, in order of `tokens`, before the last interaction of each user."""
        vectors = self.item_vectors(module)
        return self.user_vectors([self.histories[user][:-1] for user in users], vectors) @ vectors[1:].T

    @torch.no_grad()
    def average_modules(self):
        """Appends a module whose weights are the means of those of all modules."""
        for modules in (self.encoders, self.projectors):
            mean = copy.deepcopy(modules[0])
            for target, *parts in zip(mean.parameters(), *(module.parameters() for module in modules), strict=True):
                target.copy_(torch.stack(parts).mean(0))
            modules.append(mean)

    def save(self, folder, names, safe=True):
        folder.mkdir()
        torch.save(self.sasrec.float().state_dict(), folder / "sasrec_best.pth")
        for name, encoder, projector in zip(names, self.encoders, self.projectors, strict=True):
            torch.save(projector.float().state_dict(), folder / f"projector_{name}.pth")
            encoder.float().save_pretrained(folder / f"clip_encoder_{name}")
            if not safe:
                weights = folder / f"clip_encoder_{name}" / "adapter_model.safetensors"
                torch.save(load_file(weights), weights.with_suffix(".bin"))
                weights.unlink()
        write_numbers(folder / "items.tsv", self.index)
        return folder


def write_numbers(path, numbers):
    path.write_text("".join(f"{token}\t{number}\n" for token, number in numbers.items()), encoding="utf-8")
    return path
