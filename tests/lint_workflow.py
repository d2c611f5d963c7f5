"""snakemake --lint, without its demand for a conda environment per rule: one Python environment runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

run = subprocess.run(
    [sys.executable, "-m", "snakemake", "--lint", "json"],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
)
if not run.stdout.lstrip().startswith("{"):
    sys.exit(run.stderr or run.stdout)
found = json.loads(run.stdout)
lints = [("Snakefile", lint) for lint in found.get("global", [])] + [
    (rule["for"]["rule"], lint)
    for rule in found.get("rules", [])
    for lint in rule["lints"]
    if "conda environment" not in lint["title"]
]
for place, lint in lints:
    print(f"{place}: {lint['title']}: {lint['body']}")
print(f"snakemake --lint: {len(lints)} findings")
sys.exit(bool(lints))
