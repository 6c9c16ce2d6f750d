"""Models on a small catalogue."""

import pytest
import torch

from recbole_perpeft.runs.config import Config
from recbole_perpeft.runs.run import create_dataset, data_preparation, get_trainer


class Prepared:
    """A model with its loaders."""

    def __init__(self, name, settings):
        self.config = Config(model=name, config_dict=settings)
        self.dataset = create_dataset(self.config)
        self.train_data, self.valid_data, self.test_data = data_preparation(self.config, self.dataset)
        self.model = self.fresh_model()

    def fresh_model(self, seed=0):
        torch.manual_seed(seed)
        return self.config.model_class(self.config, self.train_data.dataset)

    def trainer(self, folder):
        """Of the model, with files in a folder."""
        self.config["checkpoint_dir"] = str(folder)
        return get_trainer(self.config)(self.config, self.model)

    def personalise(self, n_groups=3):
        """Groups by user id, and modules that differ."""
        users = torch.arange(self.model.n_users)
        self.model.personalise((users % n_groups).where(users > 0, -1), torch.randn(n_groups, 32))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        self.train_data.set_groups(self.model.user_group)
        return self.model


@pytest.fixture
def prepare(aspects_settings):
    def make(name="PerPEFT", **settings):
        return Prepared(name, aspects_settings | settings)

    return make


@pytest.fixture
def prepare_recbole(aspects_settings):
    """The same for models of RecBole, which have no groups."""
    own = {key: value for key, value in aspects_settings.items() if key not in ("epochs_global", "n_groups")}

    def make(name, **settings):
        return Prepared(name, own | settings)

    return make
