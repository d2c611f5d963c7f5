"""The table of docs/architectures.md: every type, tried. `make docs-types` writes it; an hour on one core.

python tests/every_type/table.py [--jobs N] [TYPE ...]      with types, only their rows are made anew
"""

import argparse
import os
import queue
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import transformers
from tqdm import tqdm

from outlier_features.model.bases import NO_OTHER_MIXER
from tiny_types import TYPES
from worker import Worker

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN = "<!-- Below this line: python tests/every_type/table.py -->"
HEAD = "| type | class | result | without |\n|---|---|---|---|\n"
WORDS = {"works": "works", "without": "partly", "refused": "refused", "cannot": "not run"}

Row = dict[str, object]


def key_of(row: Row) -> str:
    """What the table calls a type's part."""
    return f"{row['type']}, {row['part']}" if row["part"] else str(row["type"])


def line_of(row: Row) -> str:
    """A row of the table."""
    result = WORDS.get(str(row["result"]), f"**{row['result']}**")
    if row["result"] != "works":
        result += f": {row['why']}"
    missing, absent = row["missing"], row["absent"]
    assert isinstance(missing, dict) and isinstance(absent, dict)
    lacks = [f"{name}: {reason}" for name, reason in [*_grouped(absent), *missing.items()]]
    cells = (f"`{row['type']}`" + (f", {row['part']}" if row["part"] else ""), row["model"], result, "<br>".join(lacks))
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _grouped(absent: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Sites that lack for the same reason, together; not those that only blocks with another mixer have."""
    sites: dict[str, list[str]] = {}
    for site, reason in absent.items():
        if reason == NO_OTHER_MIXER:
            continue
        sites.setdefault(reason, []).append(site)
    for reason, names in sites.items():
        yield ", ".join(names), reason


def read_rows() -> dict[str, list[str]]:
    """The cells of each row after the first, by what the table calls it."""
    lines = PAGE.read_text().partition(BEGIN)[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {first.replace("`", ""): rest for first, *rest in cells}


def version() -> str:
    """The version of transformers that the table is of."""
    return PAGE.read_text().partition(BEGIN)[2].partition("transformers ")[2].split(":")[0].strip()


def try_types(names: Iterable[str], jobs: int) -> Iterator[list[Row]]:
    """Outcomes of each type, as they come."""
    waiting: queue.Queue[str] = queue.Queue()
    done: queue.Queue[list[Row]] = queue.Queue()
    names = list(names)
    for name in names:
        waiting.put(name)

    def work(folder: Path) -> None:
        with Worker(folder) as worker:
            while True:
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                done.put(worker.try_type(name))

    with tempfile.TemporaryDirectory() as folder:
        for number in range(jobs):
            threading.Thread(target=work, args=(Path(folder) / str(number),), daemon=True).start()
        for _ in tqdm(names, unit="type"):
            yield done.get()


def main() -> None:
    """Write the table, or the rows of some types."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("types", nargs="*")
    given = parser.parse_args()
    before, _, old = PAGE.read_text().partition(BEGIN)
    lines = {}
    if given.types and f"transformers {transformers.__version__}:" in old:
        lines = {
            line.split("|")[1].strip().replace("`", ""): line for line in old.splitlines() if line.startswith("| `")
        }
    for rows in try_types(given.types or sorted(TYPES), given.jobs):
        lines |= {key_of(row): line_of(row) for row in rows}
    ran = [line for line in lines.values() if "| not run: " not in line]
    works = [line for line in ran if "| works" in line]
    said = (
        f"The types of transformers {transformers.__version__}: {len(ran)} run on text alone, of which {len(works)} "
        f"work ({len(works) / max(len(ran), 1):.1%}).\n"
    )
    table = HEAD + "\n".join(line for _, line in sorted(lines.items())) + "\n"
    PAGE.write_text(f"{before}{BEGIN}\n\n{said}\n{table}")


if __name__ == "__main__":
    main()
