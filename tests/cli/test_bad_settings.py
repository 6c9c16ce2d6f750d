"""Settings that are not possible: one clear error, exit status 2, and nothing half-written left behind."""

import pytest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "1e999"),
        ("learning_rate", -1),
        ("learning_rate", "fast"),
        ("weight_decay", "nan"),
        ("weight_decay", -0.1),
        ("id_embedding_reg", "nan"),
        ("id_embedding_reg", -1),
        ("train_batch_size", -5),
        ("train_batch_size", 0),
        ("eval_batch_size", 0),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", "many"),
        ("epochs_global", -1),
        ("eval_step", -1),
        ("stopping_step", -1),
        ("seed", -1),
        ("seed", "dice"),
        ("worker", -1),
        ("MAX_ITEM_LIST_LENGTH", 0),
        ("topk", 0),
        ("metrics", "[Luck]"),
        ("valid_metric", "NDCG@7"),
        ("learner", "adamm"),
        ("enable_amp", 3),
        ("show_progress", "perhaps"),
        ("clip_grad_norm", 5),
        ("mask_history", "some"),
        ("dropout_prob", 2),
        ("n_heads", 5),
        ("group_negative_ratio", "nan"),
        ("grouping", "astrology"),
        ("missing_content", "ignore"),
        ("dataset", "../aspects"),
        ("dataset", "a/b"),
        ("foundation_model", "/nowhere/clip"),
        ("max_text_length", 0),
        ("loss_decimal_place", -1),
        ("val_interval", 3),
        ("encoding", "klingon"),
        ("runs_folder", ""),
        ("cache_folder", ""),
    ],
)
def test_a_value_that_is_not_possible(shop, key, value):
    message = shop.fails(**{key: value})
    assert key in message or f"'{value.strip('[]')}'" in message


def test_more_groups_than_users(shop):
    shop.fails("n_groups is 41", "40 users", "lower n_groups", n_groups=41)


def test_an_unknown_peft_type(shop):
    shop.fails("peft_type: 'lorra' is unknown", "did you mean lora?", peft_type="lorra")
    assert not shop.cache.exists()


def test_target_modules_that_match_nothing(shop):
    shop.fails("peft_config", "no_such_layer", "q_proj", peft_config={"target_modules": ["no_such_layer"]})
    assert not shop.cache.exists()


def test_an_unknown_key_of_a_peft_method(shop):
    shop.fails("rnak", peft_config={"rnak": 3})


@pytest.mark.parametrize(("flag", "meant"), [("n_group", "n_groups"), ("leaning_rate", "learning_rate")])
def test_an_unknown_flag_close_to_a_known_one(shop, flag, meant):
    shop.fails(f"'{flag}'", f"did you mean '{meant}'?", **{flag: 1})
    assert not (shop.root / "runs").exists()


def test_settings_files_that_cannot_be_used(shop, tmp_path):
    evil, mark = tmp_path / "evil.yaml", tmp_path / "mark"
    evil.write_text(f"a: !!python/object/apply:os.system ['touch {mark}']\n")
    shop.fails(evil, "not valid YAML", config_files=evil)
    assert not mark.exists()
    broken = tmp_path / "broken.yaml"
    broken.write_text("epochs: [1\n")
    shop.fails(broken, "not valid YAML", config_files=broken)
    shop.fails("missing.yaml", "No such file", config_files=tmp_path / "missing.yaml")
    shop.fails(tmp_path, config_files=tmp_path)


@pytest.mark.parametrize("words", ["train --config_files={}", "search --search={}", "compare --models=@{}"])
def test_a_settings_file_that_is_a_device(shop, tmp_path, words):
    """One such as /dev/zero never ends, and a pipe waits for a writer."""
    file = tmp_path / "settings.yaml"
    file.symlink_to("/dev/null")
    shop.fails(file, "not a regular file", words=words.format(file).split())


@pytest.mark.parametrize("key", ["data_path", "cache_folder", "runs_folder"])
def test_a_folder_below_a_file(shop, key):
    (shop.root / "file").touch()
    shop.fails(shop.root / "file", **{key: shop.root / "file" / "x"})
