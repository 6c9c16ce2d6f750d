"""Templates, the layout of prompts, and what is drawn for them."""

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.data.dataset import HistoryIndex
from recbole_perpeft.models.vip5.names import TokenNames
from recbole_perpeft.models.vip5.prompts import PromptSettings, PromptWriter, Sample, template_words
from recbole_perpeft.models.vip5.segments import assemble, mentions_segment, words_segment
from recbole_perpeft.models.vip5.t5 import word_tokenizer
from recbole_perpeft.models.vip5.tasks import TaskSampler, TaskSettings
from recbole_perpeft.models.vip5.templates import TASKS, Template, read_templates

TOKENIZER = word_tokenizer(["buy", "then", "?", ",", "red mug", "blue lamp", "good thing", "yes no", "rate it 12345"])
N_WORDS = len(TOKENIZER)
EXPLAINED = pd.DataFrame(
    {
        "user_id": [1, 2],
        "item_id": [1, 2],
        "rating": [4.0, 2.0],
        "feature": ["red", ""],
        "headline": ["good", "blue thing"],
        "explanation": ["good red", "blue"],
    }
)


def word(text):
    return TOKENIZER.convert_tokens_to_ids(text)


def make_writer(n_visual=2, titles=("red mug", "blue lamp", "mug"), **limits):
    item_names = TokenNames(np.array([[0, 2], [0, 3], [1, 2]]), 4)
    user_names = TokenNames(np.array([[0], [1], [2]]), 3)
    return PromptWriter(
        *(TOKENIZER, N_WORDS, item_names, user_names, n_visual, titles, EXPLAINED),
        PromptSettings(**limits),
    )


def template(text, target="{item}", task="sequential", name="T"):
    return Template(name, task, text, target)


def sample(history=((0, 1, 2), (0, 0, 3)), items=(3, 1), **more):
    return Sample(torch.tensor([1, 2]), torch.tensor(items), torch.tensor(history), **more)


def test_layout_of_a_prompt_by_hand():
    prompt = make_writer().write(template("{user} buy {history} then ?"), sample())
    user, item = N_WORDS + 4, N_WORDS  # ids of names: items, then users
    then = [word("▁then"), word("▁?"), 1]
    first = [user + 1, word("▁buy"), item, item + 2, 0, 0, word("▁,"), item, item + 3, 0, 0, *then]
    second = [user + 2, word("▁buy"), item + 1, item + 2, 0, 0, *then, 0, 0, 0, 0, 0]
    assert prompt.tokens.tolist() == [first, second]
    # A name is one word, every visual token is one, the end mark is none.
    assert prompt.word.tolist() == [[1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 0], [1, 2, 3, 3, 4, 5, 6, 7] + [0] * 6]
    # Token j of item i is 2 i + j.
    assert prompt.visual[0].tolist() == [-1] * 4 + [2, 3] + [-1] * 3 + [4, 5] + [-1] * 3
    assert prompt.visual[1].tolist() == [-1] * 4 + [6, 7] + [-1] * 8
    assert prompt.mask.sum(dim=1).tolist() == [14, 9]


def test_without_images_there_are_names_alone():
    prompt = make_writer(n_visual=0).write(template("{history} ?"), sample())
    item = N_WORDS
    assert prompt.tokens.tolist()[0] == [item, item + 2, word("▁,"), item, item + 3, word("▁?"), 1]
    assert (prompt.visual == -1).all()


def test_titles_candidates_and_explanations():
    writer = make_writer()
    one = template("{title} ?", "{answer}", "direct")
    prompt = writer.write(one, sample(is_positive=torch.tensor([True, False])))
    assert prompt.tokens[0, :5].tolist() == [word("▁mug"), 0, 0, word("▁?"), 1]
    assert prompt.tokens[1].tolist() == [word("▁red"), word("▁mug"), 0, 0, word("▁?"), 1]
    answers = writer.target_words(one, sample(is_positive=torch.tensor([True, False])))
    assert answers.tolist() == [[word("▁yes"), 1], [word("▁no"), 1]]
    many = sample(candidates=torch.tensor([[2, 1], [3, 1]]))
    prompt = writer.write(template("{candidates}", task="direct"), many)
    assert prompt.tokens[0].tolist() == [N_WORDS, N_WORDS + 3, 0, 0, word("▁,"), N_WORDS, N_WORDS + 2, 0, 0, 1]
    assert prompt.visual[0].tolist() == [-1, -1, 4, 5, -1, -1, -1, 2, 3, -1]
    rows = sample(rows=torch.tensor([1, 0]))
    rated = template("{headline} buy {feature} {rating}", "{rating} , {explanation}", "explanation")
    prompt = writer.write(rated, rows)
    assert prompt.tokens[0, :5].tolist() == [word("▁blue"), word("▁thing"), word("▁buy"), word("▁2"), 1]
    assert writer.references(rated) == ["4 , good red", "2 , blue"]
    targets = writer.target_words(rated, rows)
    assert targets.tolist() == [
        [word("▁2"), word("▁,"), word("▁blue"), 1, -1],
        [word("▁4"), word("▁,"), word("▁good"), word("▁red"), 1],
    ]


def test_long_histories_keep_their_newest_items():
    writer = make_writer(max_input_tokens=12)
    prompt = writer.write(template("{history} ?"), sample(history=((3, 1, 2), (0, 0, 3))))
    assert prompt.tokens.shape[1] <= 12
    assert [value // 2 for value in prompt.visual[0].tolist() if value >= 0] == [1, 1, 2, 2]
    with pytest.raises(PerPEFTError, match="template T needs 7 tokens"):
        make_writer(max_input_tokens=6).write(template("{history} ?"), sample())
    with pytest.raises(PerPEFTError, match="lower n_candidates"):
        make_writer(max_input_tokens=6).check([template("{candidates}", task="direct")], 3)


def test_templates_that_the_data_cannot_fill_are_refused():
    with pytest.raises(PerPEFTError, match="T has the slot {title}"):
        make_writer(titles=()).check([template("{title}", "{answer}", "direct")], 2)


def test_segments_close_their_gaps_like_lists():
    rng = np.random.default_rng(0)
    parts = []
    for width in (3, 0, 4):
        tokens = torch.from_numpy(rng.integers(3, 9, (5, width)))
        starts, valid = (torch.from_numpy(rng.random((5, width)) < 0.6) for _ in range(2))
        parts.append(words_segment(tokens, starts, valid))
    parts.append(
        mentions_segment(torch.tensor([[-1, -1], [7, 8], [9, -1]]), torch.tensor([[0, 1], [2, 1]] * 2 + [[0, 0]]), 1)
    )
    prompt = assemble(parts, end=1, max_words=5)
    for row in range(5):
        tokens, visual, starts, valid = (torch.cat([part[k][row] for part in parts]).tolist() for k in range(4))
        kept = [place for place, there in enumerate(valid) if there]
        pads = prompt.tokens.shape[1] - len(kept) - 1
        assert prompt.tokens[row].tolist() == [tokens[place] for place in kept] + [1] + [0] * pads
        assert prompt.visual[row].tolist() == [visual[place] for place in kept] + [-1] * (pads + 1)
        words, number = [], 0
        for place in kept:
            number += starts[place]
            words.append(min(max(number, 1), 4))
        assert prompt.word[row].tolist() == words + [0] * (pads + 1)


def test_bundled_templates_are_complete():
    templates = read_templates()
    assert [sum(one.task == task for one in templates.values()) for task in TASKS] == [9, 8, 12]
    assert {one.name for one in templates.values() if one.held_out} == {"A-9", "B-8", "C-12"}
    assert all(text.count("{") == 0 for text in template_words(templates))


@pytest.mark.parametrize(
    ("task", "text"), [("explanation", "does {user} like {item} ?"), ("direct", "is {item} among {candidates} ?")]
)
def test_yes_or_no_is_asked_where_training_has_an_answer(task, text):
    with pytest.raises(PerPEFTError, match="which neither explanations nor lists of {candidates} answer"):
        Template("X", task, text, "{answer}")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: X, input: '{colour} ?', target: '{item}'}", "X of the group sequential has no slot {colour}"),
        ("{name: X, input: '{history', target: '{item}'}", "X cannot be read"),
        ("{name: X, input: '{history}', target: '{explanation}'}", "cannot have the target"),
        ("{name: X, input: '{history} {item}', target: '{item}'}", "tells the item"),
        ("{name: X, input: '{history}', target: '{answer}'}", "asks for yes or no about no"),
        ("{name: X, input: '{history}'}", "is no template"),
        ("{name: X, input: '{history}', target: }", "is no template"),
        ("{name: X, input: 7, target: '{item}'}", "is no template"),
        ("{name: X, input: '{history}', target: '{item}', held_out: maybe}", "is no template"),
        ("{name: X, input: what next, target: '{item}'}", "X of the group sequential has no slot in its input"),
        ("{name: X, input: '', target: '{item}'}", "has no slot in its input"),
        ("{name: X, input: '{history} or {history}', target: '{item}'}", "the slot {history} twice"),
        ("{name: X, input: '{history} {}', target: '{item}'}", "X has braces that name no slot"),
        ("{name: X, input: '{user:x} {history}', target: '{item}'}", "X has braces that name no slot"),
        (
            "{name: X, input: '{user}', target: '{item}'}\n  - {name: X, input: '{user} ?', target: '{item}'}",
            "named X",
        ),
    ],
)
def test_bad_templates_are_refused_by_name(tmp_path, entry, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(f"sequential:\n  - {entry}\n")
    with pytest.raises(PerPEFTError, match=f"prompts.yaml: .*{message}"):
        read_templates(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat: []", "'chat' is no group"),
        ("", "has no templates"),
        ("sequential:", "has no templates"),
        ("sequential: {name: X}", "the group sequential must be a list"),
        ("direct: [oops]", "'oops' of the group direct is no template"),
    ],
)
def test_files_without_templates_are_refused(tmp_path, text, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(PerPEFTError, match=f"prompts.yaml.*{message}"):
        read_templates(path)


@pytest.mark.parametrize("limit", ["max_input_tokens", "max_target_tokens", "max_text_tokens"])
def test_limits_that_leave_nothing_are_refused(limit):
    with pytest.raises(PerPEFTError, match=f"{limit} is 0: it must be"):
        PromptSettings(**{limit: 0})


def test_samples_are_split_by_rows():
    parts = sample(candidates=torch.tensor([[1, 2], [3, 0]])).split(1)
    assert [part.users.tolist() for part in parts] == [[1], [2]]
    assert [part.candidates.tolist() for part in parts] == [[[1, 2]], [[3, 0]]]
    assert parts[1].history.tolist() == [[0, 0, 3]] and parts[0].rows is None


def make_sampler(task="direct", n_items=40, explained=((), (), ()), **settings):
    users = np.repeat(np.arange(1, 5), 6)
    items = np.concatenate([np.random.default_rng(user).permutation(n_items - 1)[:6] + 1 for user in range(1, 5)])
    history = HistoryIndex.from_pairs(users, items, 5)
    templates = [one for one in read_templates().values() if not one.held_out]
    columns = tuple(np.array(column, dtype=np.int64) for column in explained)
    settings = TaskSettings(**{"task_weights": {task: 1.0}, "n_candidates": 6} | settings)
    rows = torch.from_numpy(items.reshape(4, 6))
    length = torch.tensor([5, 5, 3, 1])
    inputs = torch.where(torch.arange(5) < length[:, None], rows[:, :5], 0)
    targets = torch.where(torch.arange(5) < length[:, None], rows[:, 1:], 0)
    sampler = TaskSampler(templates, history, n_items, columns, settings)
    return sampler, (torch.arange(1, 5), inputs, targets, length), rows


def test_sequential_samples_are_a_history_and_what_followed():
    torch.manual_seed(0)
    sampler, batch, rows = make_sampler("sequential", prompts_per_user=50)
    drawn = sampler.draw(template("{history}"), *batch)
    seen = set()
    for user, item, history in zip(drawn.users.tolist(), drawn.items.tolist(), drawn.history.tolist(), strict=True):
        items = [other for other in history if other]
        row = rows[user - 1].tolist()
        assert row[: len(items)] == items and row[len(items)] == item
        assert history == [0] * (5 - len(items)) + items
        seen.add((user, len(items)))
    assert seen == {(user, n) for user, length in enumerate(batch[3].tolist(), 1) for n in range(1, length + 1)}


@pytest.mark.parametrize(("task", "slot"), [("sequential", "history"), ("direct", "candidates")])
def test_items_that_another_row_asks_for_are_history_alone(task, slot):
    torch.manual_seed(0)
    sampler, (users, inputs, targets, length), rows = make_sampler(task, prompts_per_user=50)
    targets = targets.masked_fill((torch.arange(5) < 2) & (length == 5).unsqueeze(1), 0)
    drawn = sampler.draw(template(f"{{{slot}}}", task=task), users, inputs, targets, length)
    for user, n_items in enumerate((6, 6, 4, 2), 1):
        first = 3 if n_items == 6 else int(task == "sequential")
        assert set(drawn.items[drawn.users == user].tolist()) == set(rows[user - 1, first:n_items].tolist())


def test_questions_are_half_about_items_that_were_not_bought():
    torch.manual_seed(0)
    sampler, batch, rows = make_sampler("direct", prompts_per_user=200)
    drawn = sampler.draw(template("{user} {item}", "{answer}", "direct"), *batch)
    owned = torch.tensor([item in rows[user - 1] for user, item in zip(drawn.users, drawn.items, strict=True)])
    assert torch.equal(owned, drawn.is_positive)
    assert 0.4 < owned.float().mean() < 0.6


def test_the_right_candidate_stands_anywhere():
    torch.manual_seed(0)
    sampler, batch, rows = make_sampler("direct", prompts_per_user=300)
    drawn = sampler.draw(template("{user} {candidates}", task="direct"), *batch)
    right = drawn.candidates == drawn.items.unsqueeze(1)
    assert (right.sum(dim=1) == 1).all()
    places = right.float().mean(dim=0)
    assert places.min() > 0.12 and places.max() < 0.22  # 1 / 6 each
    owned = torch.tensor(
        [[item in rows[user - 1] for item in some] for user, some in zip(drawn.users, drawn.candidates, strict=True)]
    )
    assert torch.equal(owned, right)


def test_explanations_are_drawn_from_the_given_rows():
    torch.manual_seed(0)
    sampler, batch, _ = make_sampler("explanation", explained=((3, 4), (7, 8), (10, 30)), prompts_per_user=20)
    drawn = sampler.draw(sampler.draw_template(), *batch)
    assert set(zip(*(part.tolist() for part in (drawn.users, drawn.items, drawn.rows)), strict=True)) == {
        (3, 7, 10),
        (4, 8, 30),
    }


def test_tasks_come_by_their_weights():
    torch.manual_seed(0)
    sampler, *_ = make_sampler(task_weights={"sequential": 3.0, "direct": 1.0, "explanation": 0.0})
    drawn = [sampler.draw_template().task for _ in range(400)]
    assert 0.68 < drawn.count("sequential") / 400 < 0.82 and drawn.count("explanation") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_weights": {"chat": 1.0}}, "'chat' is no group"),
        ({"task_weights": {"direct": -1}}, "weight of direct is -1"),
        ({"task_weights": {"direct": 0}}, "no group has a positive weight"),
        ({"task_weights": {"explanation": 1.0}}, "explains no interaction"),
        ({"n_candidates": 1}, "n_candidates"),
    ],
)
def test_impossible_tasks_are_refused(settings, message):
    with pytest.raises(PerPEFTError, match=message):
        make_sampler(**settings)
