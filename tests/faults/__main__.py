"""`python -m tests.faults [--write docs/reliability.md] [PYTEST ARGUMENTS]`: run every fault, print the table.

The exit code is pytest's. `--write` puts the table between the page's markers, and only if nothing failed.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.faults.table import Tally, markdown

MARKED = re.compile(r"(?<=<!-- faults -->\n).*?(?=<!-- /faults -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    page = None
    if "--write" in arguments:
        place = arguments.index("--write")
        page = Path(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
    tally = Tally()
    code = int(pytest.main(["-q", "-m", "slow or not slow", str(Path(__file__).parent), *arguments], plugins=[tally]))
    table = markdown((name, tried, lost) for name, (tried, lost) in tally.rows.items())
    print(table)
    if page is not None and code == 0:
        text = page.read_text(encoding="utf-8")
        page.write_text(MARKED.sub(lambda _: table, text), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
