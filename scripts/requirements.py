"""Prints what setup.py requires, without building or installing the package.

python scripts/requirements.py docs                     what the extra `docs` adds
python scripts/requirements.py --lowest package test    what a package with the tests needs, each at its lowest version
"""

import argparse
import ast
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def parts() -> dict[str, list[str]]:
    """Requirements by part: `package` for what is always installed, then the extras' own lists."""
    found = {}
    for node in ast.parse(SETUP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            part, underscore, _ = node.targets[0].id.partition("REQUIRES")
            if underscore:
                found[part.strip("_").lower() or "package"] = ast.literal_eval(node.value)
    return found


def lowest(requirement: str) -> str:
    """`name>=1.2,<2` as `name==1.2`; one without a lower bound stays."""
    name, bound, rest = requirement.partition(">=")
    return f"{name}=={re.split('[,;]', rest)[0].strip()}" if bound else requirement


def main() -> None:
    """What the command line asks for, one a line."""
    known = parts()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("part", nargs="+", choices=sorted(known), help="which")
    parser.add_argument("--lowest", action="store_true", help="each at its lowest version")
    options = parser.parse_args()
    for requirement in dict.fromkeys(each for part in options.part for each in known[part]):
        print(lowest(requirement) if options.lowest else requirement)


if __name__ == "__main__":
    main()
