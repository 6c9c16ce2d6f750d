"""Do those who buy by colour look at the colour word? PerPEFT on aspects, where the truth is known.

    python scripts/colour_words.py --run=runs/<run> [--n_items=200]

Titles name the colour of a product by one word. For each of some products the share of relevance on that word is
measured as `explore` shows it, for every group and for two users: the group's mean user, and the mean of the group's
users who bought the product (only products that every group has bought). The group that buys by colour is the one with
most users of the hidden group "colour", which only `grouping: user_field` reads. A line each: how
often that group puts more relevance on the word than the mean of the others, and than each of the others, with its
module and with the untouched encoder; then the mean shares.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.aspects.drawing import ASPECTS
from recbole_perpeft.data.files.atomic_table import TableReader, read_table
from recbole_perpeft.models.perpeft.grouping import global_user_vectors
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.studies.explore.exploration import Exploration
from recbole_perpeft.studies.explore.looks import Eyes, Look

COLOURS = {word for value in ASPECTS["colour"] for word in value.words}
WHO = ("mean user", "buyers of the product")


def colour_group(found: Exploration) -> tuple[int, float]:
    """The group with most users who buy by colour, and their share in it.

    Raises:
        PerPEFTError: The data set has no hidden groups.
    """
    path = found.config.dataset_folder / f"{found.config['dataset']}.user"
    if not path.is_file():
        raise PerPEFTError(f"{path} is missing, in which hidden_group says who buys by colour: take aspects")
    reader = TableReader(path, lambda _: True, found.config["field_separator"], found.config["encoding"])
    table = read_table(reader).rows
    by_colour = set(table.loc[table["hidden_group"] == "colour", "user_id"])
    n_colour = [sum(found.user_tokens[user] in by_colour for user in group.users) for group in found.groups]
    best = int(np.argmax(n_colour))
    return best, n_colour[best] / len(found.groups[best].users)


def share(look: Look) -> float:
    """Relevance on colour words."""
    return sum(part for word, part in look.words if word.lower() in COLOURS)


def buyers(found: Exploration) -> list[torch.Tensor]:
    """By group, the sum of its buyers' vectors for every item, [n_items, d]."""
    users, items = found.histories.pairs()
    sums = []
    for number, group in enumerate(found.groups):
        vectors = global_user_vectors(found.model, group.users, found.histories, number)
        row = np.full(found.model.n_users, -1)
        row[group.users] = np.arange(len(group.users))
        of_group = row[users] >= 0
        total = torch.zeros(found.model.n_items, vectors.shape[1])
        total.index_add_(0, torch.from_numpy(items[of_group]), vectors[torch.from_numpy(row[users[of_group]])])
        sums.append(total)
    return sums


def shares(found: Exploration, items: np.ndarray) -> np.ndarray:
    """Relevance on the colour word, [users of `WHO`, with and without the module, item, group]."""
    name = str(found.config["foundation_model"])
    processor = Processor.from_pretrained(name, found.config["max_text_length"])
    untouched, sums, counts = FoundationModel.from_pretrained(name), buyers(found), torch.from_numpy(found.counts)
    result = np.empty((len(WHO), 2, len(items), len(found.groups)))
    for place, item in enumerate(tqdm(items.tolist(), desc="Look at items")):
        of_item = torch.stack([total[item] / count[item] for total, count in zip(sums, counts, strict=True)])
        for who, users in enumerate((found.mean_users, of_item)):
            looks = Eyes(found.model, processor, users, untouched).look(item, found.titles[item])
            result[who, :, place] = [[share(look) for look in seen] for seen in looks]
    return result


def main() -> None:
    """Prints how often."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder of a PerPEFT on aspects")
    parser.add_argument("--n_items", type=int, default=200, help="products to look at (%(default)s)")
    arguments = parser.parse_args()
    found = Exploration(arguments.run)
    group, of_colour = colour_group(found)
    is_named = [any(word.lower() in COLOURS for word in title.split()) for title in found.titles]
    known = np.flatnonzero((found.counts > 0).all(0) & np.array(is_named))
    items = np.random.default_rng(0).permutation(known)[: arguments.n_items]
    print(f"{found.groups[group].name}: {of_colour:.0%} of {len(found.groups[group].users):,} users buy by colour")
    for who, by_module in zip(WHO, shares(found, items), strict=True):
        for encoder, table in zip(("with its module", "untouched encoder"), by_module, strict=True):
            own, others = table[:, group], np.delete(table, group, axis=1)
            n, of_mean, of_each = len(items), own > others.mean(1), own > others.max(1)
            print(
                f"{who}, {encoder}: more than the mean of the others for {of_mean.mean():.1%} of {n} products "
                f"(± {196 * of_mean.std() / np.sqrt(n):.1f}), than each of them for {of_each.mean():.1%}; "
                f"mean share {own.mean():.3f}, the others' {others.mean():.3f}"
            )


if __name__ == "__main__":
    main()
