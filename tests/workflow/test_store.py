"""Results in an S3 store: moto's server on loopback, with Snakemake's storage plugin, both from the package index."""

import os
import socket
import subprocess
import sys
import time

import pytest

from same_artifacts import artifacts, content

RESULTS = "sweep/results"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that has this one's packages, the plugin and the server."""
    folder = tmp_path_factory.mktemp("plugin")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    wanted = ["snakemake-storage-plugin-s3>=0.3.6,<0.4", "moto[server]>=5.2"]
    subprocess.run([folder / "bin/pip", "install", "--quiet", *wanted], check=True)
    return folder / "bin/python"


@pytest.fixture
def server(python):
    """The address of a server that has nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


# Run by the interpreter that has the plugin's client: a bucket is read by those who have its key.
DOWNLOAD = """
import sys, pathlib, boto3
server, folder = sys.argv[1:]
bucket = boto3.resource("s3", endpoint_url=server, aws_access_key_id="testing", aws_secret_access_key="testing",
                        region_name="us-east-1").Bucket("bucket")
for one in bucket.objects.all():
    path = pathlib.Path(folder, one.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    bucket.download_file(one.key, str(path))
"""


@pytest.mark.slow
@pytest.mark.network
def test_a_run_whose_results_go_to_a_store(project, python, server, tmp_path):
    project.write()

    def run(*arguments: str) -> str:
        command = [python, "-m", "snakemake", "--cores", "2", *arguments, "--configfile", "mine.yaml"]
        command += ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/sweep"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(project.folder / "workflow"),
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": server,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "testing",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "testing",
        }
        done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert f"The report is s3://bucket/{RESULTS}/report.html" in run()
    assert "Nothing to be done" in run()
    subprocess.run([python, "-c", DOWNLOAD, server, tmp_path], check=True)
    stored = tmp_path / RESULTS
    assert (stored / "report.html").is_file()
    # The same tables as those of the run on the disk, but for the gallery's, which a store does not have.
    expected = {
        name: path
        for name, path in artifacts(project.first / "results").items()
        if name.suffix == ".parquet" and "gallery" not in str(name)
    }
    assert len(expected) > 30
    for name, path in expected.items():
        assert content(stored / name) == content(path), name
