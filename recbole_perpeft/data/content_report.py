"""What is wrong with the titles and images of a data set, gathered so that one error can tell everything."""

from enum import Enum

from recbole_perpeft.core.errors import PerPEFTError

N_SHOWN = 10


class Problem(Enum):
    """A kind of problem: what is wrong, and whether a blank image or an empty title may stand in for it."""

    ENCODING = ("lines are not UTF-8", False)
    COLUMNS = ("lines have a wrong number of columns", False)
    NO_ID = ("lines have no item id", False)
    DUPLICATE = ("item ids occur more than once", False)
    OUTSIDE = ("image paths leave the folder of the data set", False)
    UNKNOWN = ("items of the interactions are not in the item file", False)
    NO_FOLDER = ("folders of images are missing", True)
    NO_IMAGE = ("items have no image", True)
    RENAMED = (
        "items have no image, and ids with characters that are rarely in names of files: give their files in a column "
        "image:token of the item file",
        True,
    )
    DAMAGED = ("images cannot be used", True)
    NO_TITLE = ("titles are empty", True)

    def __init__(self, text: str, may_be_blank: bool):
        self.text = text
        self.may_be_blank = may_be_blank


class ContentReport:
    """Problems by kind, each with one detail (an item, a line, a file) a case, in the order they were found."""

    def __init__(self) -> None:
        self._details: dict[Problem, list[str]] = {}

    def add(self, problem: Problem, detail: str) -> None:
        self._details.setdefault(problem, []).append(detail)

    def merged(self, other: "ContentReport") -> "ContentReport":
        """A new report with the problems of both."""
        both = ContentReport()
        for report in (self, other):
            for problem, details in report._details.items():
                both._details.setdefault(problem, []).extend(details)
        return both

    def count(self, problem: Problem) -> int:
        return len(self._details.get(problem, ()))

    def __len__(self) -> int:
        return sum(map(len, self._details.values()))

    @property
    def may_be_blank(self) -> bool:
        """Whether blank images and empty titles can stand in for everything that is wrong."""
        return all(problem.may_be_blank for problem in self._details)

    def summary(self) -> str:
        """One line a kind: how many, and the first ten."""
        lines = []
        for problem in Problem:
            details = self._details.get(problem, [])
            if details:
                more = ", ..." if len(details) > N_SHOWN else ""
                lines.append(f"  {len(details)} {problem.text}: {', '.join(details[:N_SHOWN])}{more}")
        return "\n".join(lines)

    def error(self, source: str) -> PerPEFTError:
        """The one error that tells everything, with the remedy.

        Args:
            source: the file or folder the problems were found in.
        """
        remedy = "Mend the data"
        if any(problem.may_be_blank for problem in self._details):
            remedy += ", or pass --missing_content=blank to go on with blank images and empty titles"
            remedy += "" if self.may_be_blank else " (the other problems have to be mended)"
        return PerPEFTError(
            f"{source}: the content of the items has {len(self)} problem(s):\n{self.summary()}\n{remedy}."
        )
