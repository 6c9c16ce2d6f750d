"""Templates of prompts: read from a file, checked, and taken apart into words and slots."""

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.yaml_values import read_yaml

BUNDLED = Path(__file__).with_name("prompts.yaml")
_ROW = ("feature", "rating", "headline")
SLOTS = MappingProxyType(
    {
        "sequential": ("user", "history", "item", "title"),
        "direct": ("user", "item", "title", "candidates"),
        "explanation": ("user", "item", "title", *_ROW),
    }
)
TASKS = tuple(SLOTS)
_WORD_TARGETS = ("explanation", "rating")
_TYPES = MappingProxyType({"name": str, "input": str, "target": str, "held_out": bool})
_FORM = "{name: ..., input: ..., target: ...}"


@dataclass(frozen=True)
class Part:
    """A piece of a template.

    Args:
        text: Words, if there are any.
        slot: Name of the slot that follows them; None at the end.
    """

    text: str
    slot: str | None


@dataclass(frozen=True)
class Template:
    """A prompt with slots, and what answers it.

    Args:
        name: Its name.
        task: `sequential`, `direct` or `explanation`.
        input: Words and slots.
        target: `{item}`, `{answer}`, or words with `{explanation}` and `{rating}`.
        held_out: Whether it is kept from training.

    Raises:
        PerPEFTError: A slot is unknown in this task, there is none, or input and target do not fit.
    """

    name: str
    task: str
    input: str
    target: str
    held_out: bool = False

    def __post_init__(self) -> None:
        for slot in self.slots:
            if slot not in SLOTS[self.task]:
                self._refuse(f"has no slot {{{slot}}}; choose of {_listed(SLOTS[self.task])}")
        if not self.slots:
            self._refuse(f"has no slot in its input; choose of {_listed(SLOTS[self.task])}")
        if self.slots.count("history") > 1:
            self._refuse("has the slot {history} twice")
        targets = {part.slot for part in parts_of(self.target, self.name) if part.slot}
        if self.target not in ("{item}", "{answer}") and not (
            self.task == "explanation" and targets and targets <= set(_WORD_TARGETS)
        ):
            self._refuse(
                f"cannot have the target {self.target!r}; it is {{item}}, {{answer}}, or, in the group explanation, "
                f"words with {_listed(_WORD_TARGETS)}"
            )
        if self.target == "{item}" and (self.task == "explanation" or {"item", "title"} & set(self.slots)):
            self._refuse("tells the item that it asks for")
        if self.target == "{answer}" and not {"item", "title"} & set(self.slots):
            self._refuse("asks for yes or no about no {item} or {title}")
        if self.target == "{answer}" and (self.task == "explanation" or "candidates" in self.slots):
            self._refuse("asks for yes or no, which neither explanations nor lists of {candidates} answer")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The input, taken apart."""
        return parts_of(self.input, self.name)

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots of the input."""
        return tuple(part.slot for part in self.parts if part.slot)

    @property
    def answers(self) -> str:
        """`item`, `answer` or `words`."""
        return {"{item}": "item", "{answer}": "answer"}.get(self.target, "words")

    def _refuse(self, why: str) -> None:
        raise PerPEFTError(f"the template {self.name} of the group {self.task} {why}")


def parts_of(text: str, name: str) -> tuple[Part, ...]:
    """Takes a template apart.

    Raises:
        PerPEFTError: Its braces do not fit.
    """
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise PerPEFTError(f"the template {name} cannot be read ({error}); slots look like {{user}}") from error
    for _, slot, format_spec, conversion in fields:
        if slot == "" or format_spec or conversion:
            raise PerPEFTError(f"the template {name} has braces that name no slot; slots look like {{user}}")
    return tuple(Part(words.strip(), slot) for words, slot, _, _ in fields)


def read_templates(path: Path | None = None) -> dict[str, Template]:
    """Templates by name.

    Args:
        path: A file as `prompts.yaml` of this package, which is read by default.

    Raises:
        PerPEFTError: The file or a template in it cannot be used.
    """
    path = path or BUNDLED
    groups = read_yaml(path)
    unknown = groups.keys() - SLOTS.keys()
    if unknown:
        raise PerPEFTError(f"{path}: {min(unknown)!r} is no group of prompts; choose of {', '.join(TASKS)}")
    templates: dict[str, Template] = {}
    for task, entries in groups.items():
        if not isinstance(entries, list | None):
            raise PerPEFTError(f"{path}: the group {task} must be a list of {_FORM}")
        for entry in entries or []:
            template = _template(path, task, entry)
            if template.name in templates:
                raise PerPEFTError(f"{path}: two templates are named {template.name}; give each its own name")
            templates[template.name] = template
    if not templates:
        raise PerPEFTError(f"{path} has no templates; write lists of {_FORM} below {', '.join(TASKS)}")
    return templates


def _template(path: Path, task: str, entry: Any) -> Template:
    is_whole = isinstance(entry, dict) and {"name", "input", "target"} <= entry.keys() <= _TYPES.keys()
    if not is_whole or not all(isinstance(value, _TYPES[key]) for key, value in entry.items()):
        raise PerPEFTError(f"{path}: {entry!r} of the group {task} is no template; write {_FORM}")
    try:
        return Template(task=task, **entry)
    except PerPEFTError as error:
        raise PerPEFTError(f"{path}: {error}") from error


def _listed(slots: tuple[str, ...]) -> str:
    return ", ".join(f"{{{slot}}}" for slot in slots)
