"""Known vulnerabilities of the locked versions, by pip-audit; where its service does not answer, one line says so.

A vulnerability that does not concern this workflow is listed in `ACCEPTED`, with the reason.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ACCEPTED: dict[str, str] = {}  # identifier: why it does not concern us
LOCK = Path(__file__).parents[1] / "requirements.lock"
_SECONDS = 60
_UNREACHABLE = ("ConnectionError", "ProxyError", "SSLError", "Timeout", "HTTPError", "ServiceError")


def audit(lock: Path) -> tuple[int, str]:
    """Exit status and what is to be said."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    for identifier in ACCEPTED:
        command += ["--ignore-vuln", identifier]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return 0, f"pip-audit: no answer within {_SECONDS} s, so {lock.name} is not audited"
    except (ValueError, KeyError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        if not any(one in said for one in _UNREACHABLE):
            return 1, f"error: pip-audit gave no result for {lock.name}: {said}"
        return 0, f"pip-audit: its service cannot be reached, so {lock.name} is not audited: {said}"
    known = [one for one in found if "skip_reason" not in one]
    lines = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {vulnerability['fix_versions'] or 'none'}"
        for one in known
        for vulnerability in one["vulns"]
    ]
    count = f"pip-audit: {len(known)} of the {len(found)} versions of {lock.name} are known to its service"
    return int(bool(lines)), "\n".join([*lines, f"{count}, {len(lines)} vulnerabilities"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path, nargs="?", default=LOCK)
    status, text = audit(parser.parse_args().lock)
    print(text)
    sys.exit(status)
