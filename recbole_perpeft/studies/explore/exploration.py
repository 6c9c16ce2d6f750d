"""A trained model of groups, with all that a page tells about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.content import ItemContent
from recbole_perpeft.models.perpeft.grouping import global_user_vectors
from recbole_perpeft.models.perpeft.model import PerPEFT
from recbole_perpeft.pretrained.dual import FoundationModel
from recbole_perpeft.pretrained.processor import Processor
from recbole_perpeft.runs.config import changed
from recbole_perpeft.runs.record import RunRecord
from recbole_perpeft.runs.run import load
from recbole_perpeft.studies.explore import parts
from recbole_perpeft.studies.explore.characters import (
    Service,
    Typical,
    counts_by_group,
    ranks_under,
    services,
    words_of,
)
from recbole_perpeft.studies.explore.looks import Eyes
from recbole_perpeft.studies.explore.pictures import Album


@dataclass(frozen=True)
class Group:
    """A group as the page has it; lists, exports and checkpoints number groups from 0 too."""

    name: str
    users: np.ndarray  # internal ids


class Exploration:
    """A trained model of groups with all that the page tells about it.

    Args:
        model_file: `best.pth` of a run, or its folder.
        config_dict: Settings to change, as for `load`.

    Raises:
        PerPEFTError: No checkpoint, or the model has no groups.
    """

    def __init__(self, model_file: str | Path, config_dict: Mapping[str, Any] | None = None) -> None:
        # The page compares modules by rankings of the whole catalogue, whatever the run was tested by.
        settings = changed(changed({}, config_dict or {}), {"eval_args": {"mode": {"test": "full"}}})
        self.config, self.model, self.dataset, train, _, self.test = load(model_file, settings)
        path = Path(model_file)
        self._record = RunRecord(path if path.is_dir() else path.parent)
        if not isinstance(self.model, PerPEFT) or not self.model.n_groups:
            raise PerPEFTError(
                f"{model_file}: {type(self.model).__name__} has no groups of users to look at; train PerPEFT"
            )
        if not self.test:
            raise PerPEFTError(
                f"{model_file}: its split leaves no test items, by which the page tells how groups are served; set "
                "eval_args to one that does"
            )
        self.histories = train.dataset.interactions
        self.user_group = self.model.user_group.cpu().numpy()
        n_groups = self.model.n_groups
        self.groups = [Group(f"group {g}", np.flatnonzero(self.user_group == g)) for g in range(n_groups)]
        self.item_tokens = self.dataset.field2id_token[self.model.ITEM_ID]
        self.user_tokens = self.dataset.field2id_token[self.model.USER_ID]
        self.counts = counts_by_group(self.histories, self.user_group, n_groups, self.model.n_items)
        self._load_content()

    def _load_content(self) -> None:
        config = self.config
        fields = tuple(dict.fromkeys(("title", *self.model.content_fields(config))))
        content = ItemContent.load(config.dataset_folder, config["dataset"], self.item_tokens[1:], "blank", fields)
        row_of = {token: row for row, token in enumerate(content.tokens)}
        rows = [row_of.get(token) for token in self.item_tokens]
        self.titles = ["" if row is None else content.titles[row] for row in rows]
        self.album = Album([None if row is None else content.image_paths[row] for row in rows])

    def name_of(self, item: int) -> str:
        """The title of an item, or its id where it has none."""
        return self.titles[item] or str(self.item_tokens[item])

    def shown(self, item: int, note: str = "") -> parts.Shown:
        """An item in a list."""
        return parts.Shown(self.name_of(item), self.album.photo(item), note)

    def items_named(self, tokens: Sequence[str]) -> list[int]:
        """Internal ids of items.

        Raises:
            PerPEFTError: One is not in the data set.
        """
        ids = {token: item for item, token in enumerate(self.item_tokens) if item}
        unknown = [token for token in tokens if token not in ids]
        if unknown:
            raise PerPEFTError(f"--items: not in the data set {self.config['dataset']}: {', '.join(unknown[:10])}")
        return [ids[token] for token in tokens]

    def contested_items(self, n: int) -> list[int]:
        """Items that groups buy most unevenly, each group's most typical ones in turn."""
        lists = [[item for item, _ in self.typical.most(group, n)] for group in range(len(self.groups))]
        in_turn = (items[place] for place in range(n) for items in lists if place < len(items))
        return list(dict.fromkeys(in_turn))[:n]

    @cached_property
    def typical(self) -> Typical:
        """Items that are typical of groups."""
        return Typical.of(self.counts)

    @cached_property
    def words(self) -> tuple[list[str], Typical]:
        """Words of titles, and how typical they are of groups."""
        matrix, words = words_of(self.titles)
        return words, Typical.of(self.counts @ matrix)

    @cached_property
    def metric(self) -> str:
        """NDCG at the longest list of the run."""
        return f"NDCG@{max(self.config['topk'])}"

    @cached_property
    def ranks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Test users, and the ranks of their items under their group's module and under the global one."""
        users, everybody = ranks_under(self.model, self.test, as_everybody=True)
        own = self._ranks_of_run(users)
        return users, ranks_under(self.model, self.test, as_everybody=False)[1] if own is None else own, everybody

    def _ranks_of_run(self, users: np.ndarray) -> np.ndarray | None:
        """What the run wrote of the test users, int64 [n]; None where that is not of this model.

        A run that went on has another best epoch than the file is of, and users may be others where the settings were
        changed: users and groups are compared, and the ranks of the first batch are made anew.
        """
        table = self._record.ranks()
        if table is None or "group" not in table or not np.array_equal(table["user"], self.user_tokens[users]):
            return None
        own = table["rank"].to_numpy(np.int64)
        first = ranks_under(self.model, islice(self.test, 1), as_everybody=False)[1]
        is_same = np.array_equal(table["group"], self.user_group[users]) and np.array_equal(own[: len(first)], first)
        return own if is_same else None

    @cached_property
    def served(self) -> list[Service]:
        """How well groups are served."""
        users, own, everybody = self.ranks
        return services(self.metric, own, everybody, self.user_group[users], len(self.groups))

    @cached_property
    def mean_users(self) -> Tensor:
        """Mean vector of each group's users under its module, [C, d]."""
        return torch.stack(
            [
                global_user_vectors(self.model, group.users, self.histories, number).mean(0)
                for number, group in enumerate(self.groups)
            ]
        )

    def eyes(self) -> Eyes:
        """What looks at items.

        Raises:
            PerPEFTError: The model does not adapt a dual encoder.
        """
        name = self.config["foundation_model"]
        if not name:
            raise PerPEFTError("looks at photos and words are made for dual encoders (foundation_model) alone")
        processor = Processor.from_pretrained(str(name), self.config["max_text_length"])
        return Eyes(self.model, processor, self.mean_users, FoundationModel.from_pretrained(str(name)))
