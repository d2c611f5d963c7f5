"""The switch `--no-skips`: a test skipped for want of a browser or root fails the run."""

import os

import pytest

# Several processes share the cores, tests and the jobs that they start: threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail if any test is skipped")


def pytest_sessionfinish(session):
    if session.config.getoption("--no-skips"):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and reporter.stats.get("skipped"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
