"""Damage to each artifact of a run: the stages that read it refuse it by name, or make of it what they had made.

Artifacts and stages are those of the run itself, so a new rule is tried without a word here: each job's script, as
Snakemake wrote it, runs again in a copy of the run's files.
"""

import contextlib
import hashlib
import os
import runpy
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from outlier_features.command.main import main
from outlier_features.files.artifacts import write_json
from outlier_features.run.verify_artifacts import verify_artifacts
from same_artifacts import SUFFIXES, content


@dataclass(frozen=True)
class Extent:
    """How much is tried.

    flips   bytes of each artifact's header, footer or text in which a bit is flipped
    steps   places from it of siblings of its kind that may stand in its place
    each    whether every reader and `verify` meet every damage; if not, they take turns, but all meet an empty file,
            and the report, which draws for a second before all is read, has one turn with each artifact
    """

    flips: int
    steps: tuple[int, ...]
    each: bool


PLACES = (Path("results"), Path("resources"))
GALLERY, REPORT = Path("results/gallery"), Path("results/report")
FEW, GRID = Extent(1, (1,), each=False), Extent(6, (-2, -1, 1, 2), each=True)


@dataclass(frozen=True)
class Job:
    """A job of the run: the script that Snakemake wrote for it, and what it was told."""

    script: Path
    snakemake: Any

    def run(self) -> tuple[int, str]:
        """Run it here; returns its exit status and the last line of its log."""
        path, status = list(sys.path), 0
        try:
            runpy.run_path(str(self.script), run_name="__main__")
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            sys.path[:] = path
        return status, (Path(self.snakemake.log[0]).read_text().splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def jobs(project) -> list[Job]:
    found = []
    for script in sorted((project.folder / ".snakemake/scripts").glob("*.py")):
        told: dict[str, Any] = {"__file__": str(script)}
        path = list(sys.path)
        exec(script.read_text().splitlines()[1], told)  # the line that Snakemake put in
        sys.path[:] = path
        found.append(Job(script, told["snakemake"]))
    return found


@pytest.fixture(scope="module")
def another(project) -> Path:
    """Another run's results: fewer tokens, another rule."""
    project.run_here(results="another", sample__tokens=40, rules__dettmers__threshold=7.0)
    return project.folder / "another"


@contextlib.contextmanager
def copy_of(folder: Path, place: Path) -> Iterator[None]:
    """In a copy of a run's files; they are links, which no writer may write through."""
    for name in ("results", "resources"):
        shutil.copytree(folder / name, place / name, copy_function=os.link)
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(place)


def links_of(folder: Path) -> dict[str, int]:
    """The inodes of a run's files, by their paths in its folder."""
    found, below = {}, [*map(str, PLACES)]
    while below:
        place = below.pop()
        with os.scandir(folder / place) as entries:
            for entry in entries:
                path = f"{place}/{entry.name}"
                if entry.is_dir():
                    below.append(path)
                else:
                    found[path] = entry.inode()
    return found


def mend(place: Path, folder: Path) -> None:
    """Have a copy hold links to the run's files again, and nothing else: it costs less than another copy."""
    found, whole = links_of(place).items(), links_of(folder).items()
    for path, _ in found - whole:
        (place / path).unlink()
    for path, _ in whole - found:
        os.link(folder / path, place / path)


def sealed_bytes(path: Path, whole: bytes, flips: int) -> list[int]:
    """Places, spread over what describes the data: header, footer, metadata; of text all of it."""
    if path.suffix == ".safetensors":
        first, last = 0, whole.index(b"  ")
    elif path.suffix == ".parquet":
        first, last = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)
    else:
        first, last = 0, len(whole)
    return [first + (last - 1 - first) * (2 * i + 1) // (2 * flips) for i in range(flips)]


def place_of_data(path: Path) -> int:
    """The middle of a table's largest column; headers of pages have no checksum, and readers stumble over them."""
    groups = pq.read_metadata(path)
    columns = [groups.row_group(i).column(j) for i in range(groups.num_row_groups) for j in range(groups.num_columns)]
    if not columns:
        return path.stat().st_size // 4
    largest = max(columns, key=lambda column: column.total_compressed_size)
    first = min(place for place in (largest.dictionary_page_offset, largest.data_page_offset) if place is not None)
    return int(first + largest.total_compressed_size // 2)


def flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def damages(
    path: Path, artifacts: list[Path], folder: Path, another: Path, extent: Extent
) -> Iterator[tuple[str, bytes]]:
    """What a file may become, by name."""
    whole = path.read_bytes()
    yield "empty", b""
    yield "cut in half", whole[: len(whole) // 2]
    yield "cut at the end", whole[:-3]
    for place in sealed_bytes(path, whole, extent.flips):
        yield f"byte {place} flipped", flipped(whole, place)
    if path.suffix == ".parquet":
        yield "data flipped", flipped(whole, place_of_data(path))
    alike = [one for one in artifacts if one.suffix == path.suffix]
    place = alike.index(path)
    for sibling in {one for one in alike if one.parent == path.parent and one.stem[0].isdecimal()} | {
        alike[(place + step) % len(alike)] for step in extent.steps
    }:
        if sibling != path and path.suffix != ".html":  # what a page is of stands in its words only
            yield f"{sibling.relative_to(folder)} instead", sibling.read_bytes()
    place = another / path.relative_to(folder / "results") if path.is_relative_to(folder / "results") else None
    # A page says its run in words only, and a run that Snakemake did not start has no run.json.
    if place and path.suffix != ".html" and place.exists():
        yield "another run's", place.read_bytes()


def artifacts_of(folder: Path) -> list[Path]:
    """All but the gallery's pages, of which one of a neuron stands for all, and the second page of the report."""
    found = [p for name in ("results", "resources") for p in sorted((folder / name).rglob("*")) if p.suffix in SUFFIXES]
    pages = [path for path in found if path.suffix == ".html" and path.is_relative_to(folder / GALLERY)]
    left_out = {*pages, folder / REPORT / "index.html"} - {next(path for path in pages if path.name.startswith("L"))}
    return [path for path in found if path not in left_out]


def data_of_pages(folder: Path) -> list[Path]:
    return [
        path for place in (GALLERY, REPORT) for path in (folder / place).rglob("*.js") if path.parent.name != "page"
    ]


def test_every_artifact_is_read_by_a_stage_or_is_the_last(project, jobs):
    read = {path for job in jobs for path in job.snakemake.input}
    written = {path for job in jobs for path in job.snakemake.output}
    unread = {str(path.relative_to(project.first)) for path in artifacts_of(project.first)} - read
    pages = {path for path in unread if Path(path).is_relative_to(GALLERY)}
    of_run = ("mask.json", "neurons.safetensors", "run.json")
    last = {"results/report.html", *(f"results/tiny/text/{name}" for name in of_run)}
    assert unread - pages == last and len(written) > 15
    assert {Path(path).suffix for path in pages} == {".html"}


@pytest.mark.parametrize("extent", [FEW, pytest.param(GRID, marks=pytest.mark.slow)], ids=["few", "grid"])
def test_damage_is_refused_by_name_or_changes_nothing(project, jobs, another, extent, tmp_path, capfd):
    undisturbed = cache(lambda path: content(project.first / path))
    tried = refused = 0

    def runs_on(job: Job, case: str) -> bool:
        """Whether a job runs on what there is now; if not, it has refused it.

        What it makes then is what it had made. Only where it reads nothing else of the run it cannot know another
        run's file, and leaves the refusal to another stage.
        """
        nonlocal tried, refused
        status, line = job.run()
        tried += 1
        if status:
            refused += 1
            assert status == 1 and line.startswith("error: ") and name in line and "delete" in line, f"{case}: {line}"
        else:
            differing = [made for made in job.snakemake.output if content(Path(made)) != undisturbed(made)]
            assert not differing or "another run's" in case, f"{case}: made another {differing}"
        return not status

    artifacts = artifacts_of(project.first)
    with copy_of(project.first, tmp_path / "copy"):
        for turn, path in enumerate(artifacts):
            name = str(path.relative_to(project.first))
            readers = [job for job in jobs if name in job.snakemake.input]
            for number, (what, damaged) in enumerate(damages(path, artifacts, project.first, another, extent)):
                Path(name).unlink()
                Path(name).write_bytes(damaged)
                report = [job for job in readers if job.snakemake.rule == "render_report"]
                in_turn = deque(job for job in readers if job not in report)
                in_turn.rotate(turn + number)
                (in_turn.extendleft if number == 1 + turn % 4 else in_turn.extend)(report)
                went_on = []
                for job in in_turn:
                    if runs_on(job, f"{name}, {what}, read by {job.snakemake.rule}"):
                        went_on.append(job)
                    elif not extent.each and what != "empty":
                        break  # one refusal is enough
                if what == "empty":  # these do not read what they ask for
                    readers = [job for job in readers if job not in went_on]
                elif len(went_on) == len(readers) > 0:
                    assert content(Path(name)) == undisturbed(name), f"{name}, {what}, went unseen by {went_on}"
                if extent.each or number == turn % 9 or not readers:
                    found = {str(verdict.path) for verdict in verify_artifacts(PLACES) if verdict.found}
                    case = f"{name}, {what}: verify found {found}"
                    assert name in found or (Path(name).exists() and content(Path(name)) == undisturbed(name)), case
                mend(tmp_path / "copy", project.first)
    assert refused > 0.9 * tried > 100, (refused, tried)
    capfd.readouterr()


def test_a_bit_flipped_in_the_data_is_found_by_verify(project, tmp_path):
    with copy_of(project.first, tmp_path / "copy"):
        assert all(verdict.found is None for verdict in verify_artifacts(PLACES))
        for path in artifacts_of(project.first):
            whole, name = path.read_bytes(), path.relative_to(project.first)
            name.unlink()
            name.write_bytes(flipped(whole, (len(whole) // 2 if path.suffix != ".safetensors" else len(whole) - 1)))
            bad = [verdict for verdict in verify_artifacts(PLACES) if verdict.found]
            assert [verdict.path for verdict in bad] == [name], bad
            name.unlink()
            os.link(path, name)


@pytest.mark.parametrize(
    ("name", "rule", "log"),
    [
        ("results/tiny/text/pairs.parquet", "analyze_emergence", "analyze_emergence/tiny/text.log"),
        pytest.param(  # all of a run follows from it
            *("resources/models/tiny/source.json", "tokenize_corpus", "tokenize_corpus/tiny/text.log"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_deleted_artifact_is_made_again(project, name, rule, log):
    """What the message says to do helps."""
    whole = (project.folder / name).read_bytes()
    (project.folder / name).unlink()  # another name of it is kept
    (project.folder / name).write_bytes(whole[:-9])
    failed = project.run()
    assert failed.status == 1 and f"\nerror: {name}: expected " in failed.output
    last = next(
        line for line in failed.output.splitlines() if line.startswith(f"rule {rule} failed: {name}: expected ")
    )
    assert "delete" in last and last.endswith(f"; log: results/logs/{log}")
    (project.folder / name).unlink()
    assert project.run().status == 0
    assert (project.folder / name).read_bytes() == whole


def test_verify_says_a_line_for_each_bad_file(project, tmp_path, capsys):
    with copy_of(project.first, tmp_path / "copy"):
        assert main(["verify", "results", "resources"]) == 0
        pages = [*(project.first / GALLERY).rglob("*.html")]
        for_quantizers = [one for one in project.first.rglob("quantization/*") if one.suffix in (".gguf", ".yaml")]
        count = sum(map(len, (artifacts_of(project.first), pages, data_of_pages(project.first), for_quantizers)))
        assert capsys.readouterr().out == f"{count} files checked, 0 bad\n"
        Path("results/report.html").unlink()
        Path("results/report.html").write_text("<html></html>")
        (tmp_path / "copy/results/tiny/text/.layers.parquet.node7-1-01234567.tmp").write_bytes(b"PAR1")
        assert main(["verify", "results"]) == 1
        out, err = capsys.readouterr()
        assert out.splitlines()[0].startswith("results/report.html: expected a page, found ")
        assert out.splitlines()[1].endswith(" files checked, 1 bad")
        assert err.startswith("error: 1 of ") and err.count("\n") == 1
        assert main(["verify", "nowhere"]) == 1


def test_verify_reads_the_files_of_a_fetched_model(tmp_path, capsys):
    folder = tmp_path / "models/mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"location": ".", "origin": "o", "revision": "r"}
    described = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    write_json(folder / "source.json", {**record, "files": {"config.json": described}})
    assert main(["verify", str(tmp_path)]) == 0
    (folder / "config.json").write_text("[]")
    assert main(["verify", str(tmp_path)]) == 1
    assert "config.json has the SHA-256" in capsys.readouterr().out
