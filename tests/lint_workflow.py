"""snakemake --lint, without its demand for a conda environment per rule: one Python environment runs all of it."""

import re
import subprocess
import sys
from pathlib import Path

run = subprocess.run(
    [sys.executable, "-m", "snakemake", "--lint"],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
)
output = run.stdout + run.stderr
findings = []
for place, section in re.findall(r"^Lints for (.*?):\n(.*?)(?=^Lints for|\Z)", output, re.DOTALL | re.MULTILINE):
    for lint in re.split(r"^    \* ", section, flags=re.MULTILINE)[1:]:
        if not lint.startswith("Specify a conda environment or container for each rule"):
            findings.append(f"{place}: {' '.join(lint.split())}")
if run.returncode and "Lints for" not in output:
    sys.exit(output)  # the workflow does not even parse
print(*findings, f"snakemake --lint: {len(findings)} findings", sep="\n")
sys.exit(bool(findings))
