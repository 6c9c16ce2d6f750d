"""Cost of a training step and of an evaluation over the bare work of the encoder, in one run.

    python benchmarks/train_step.py [--quick] [--dataset=...] [--key=value ...]

* `train_step`: loading a batch, loss, backward and optimiser, over forward and backward of the foundation model with
  its adapter on the same distinct items.
* `evaluation`: ranking the whole catalogue for every user, over encoding the catalogue once a group.

Both sides alternate. The last line is the worse of the two; exit status 1 if it is above its limit.
"""

import sys
import tempfile
from statistics import median
from time import perf_counter

import torch

from recbole_perpeft.models.perpeft.grouping import random_groups
from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer

LIMIT = 1.25


def prepared(settings: dict):
    """Model, trainer and loaders in the personalised stage, with random groups."""
    config = Config(model="PerPEFT", config_dict=settings)
    torch.manual_seed(config["seed"])
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    model = config.model_class(config, train_data.dataset).to(config["device"])
    users = train_data.dataset.interactions.users
    groups = torch.full((model.n_users,), -1)
    groups[users] = torch.from_numpy(random_groups(len(users), model.group_settings.n_groups, 1, seed=0))
    model.personalise(groups, torch.zeros(model.group_settings.n_groups, config["hidden_size"]))
    train_data.set_groups(groups)
    return model, get_trainer(config)(config, model), train_data, valid_data


def finished(device: torch.device) -> float:
    """Time after everything that was sent to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def encode_bare(content, items: torch.Tensor, group: int, backward: bool) -> float:
    """Seconds of the foundation model with its adapter on ready inputs."""
    rows = content.row_of_item[items]
    device = content.bank.parameters_of(group)[0].device
    chunks = [content.inputs(part) for part in rows[rows >= 0].split(content.chunk_size)]
    chunks = [{name: tensor.to(device) for name, tensor in chunk.items()} for chunk in chunks]
    began = finished(device)
    with torch.set_grad_enabled(backward):
        vectors = [content.encode(group, **chunk) for chunk in chunks]
    if backward:
        torch.cat(vectors).sum().backward()
    seconds = finished(device) - began
    content.bank.zero_grad(set_to_none=True)
    return seconds


def train_ratio(model, trainer, train_data, n_steps: int) -> float:
    """Median over batches of step time over bare encoder time."""
    content, ratios = model.item_encoder.content_encoder, []
    model.train()
    batches = iter(train_data)
    for _ in range(min(n_steps, len(train_data))):
        began = finished(trainer.device)
        batch = next(batches)
        trainer._train_step([batch], model.calculate_loss)
        step = finished(trainer.device) - began
        fields = (model.ITEM_SEQ, model.POS_ITEM_SEQ, model.NEG_ITEM_SEQ)
        items = torch.cat([batch[field].flatten() for field in fields]).unique()
        group = int(model.group_of(batch[model.USER_ID])[0])
        ratios.append(step / encode_bare(content, items, group, backward=True))
    return median(ratios[1:] or ratios)


def evaluation_ratio(model, trainer, valid_data, n_rounds: int) -> float:
    """Median over rounds of the time of an evaluation over encoding the catalogue once a group."""
    content, ratios = model.item_encoder.content_encoder, []
    items = torch.arange(1, model.n_items)
    for _ in range(n_rounds):
        model.train()  # drops the catalogue vectors
        began = finished(trainer.device)
        trainer.evaluate(valid_data, load_best_model=False)
        evaluation = finished(trainer.device) - began
        bare = sum(encode_bare(content, items, group, backward=False) for group in range(model.n_groups))
        ratios.append(evaluation / bare)
    return median(ratios[1:] or ratios)


def main(arguments: list[str]) -> int:
    """Prints both ratios; 1 if one is above the limit."""
    quick = "--quick" in arguments
    settings = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
    with tempfile.TemporaryDirectory() as folder:
        defaults = {"dataset": "aspects", "show_progress": False, "checkpoint_dir": folder}
        model, trainer, train_data, valid_data = prepared(defaults | settings)
        step = train_ratio(model, trainer, train_data, n_steps=8 if quick else 40)
        evaluation = evaluation_ratio(model, trainer, valid_data, n_rounds=3 if quick else 7)
    print(f"train_step ratio {step:.3f} limit {LIMIT}")
    print(f"evaluation ratio {evaluation:.3f} limit {LIMIT}")
    name, worst = max(("train_step", step), ("evaluation", evaluation), key=lambda pair: pair[1])
    print(f"{name} ratio {worst:.3f} limit {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
