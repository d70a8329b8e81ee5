"""A real server of the S3 interface (moto) on this machine, also behind a proxy that loses answers.

`make test-s3` runs them, in an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

import gracekit
from gracekit.errors import ExportError, RemoteDeniedError, RemoteError, RemoteNotFoundError
from gracekit.exports import export
from gracekit.remote import RemoteFolder, folder
from gracekit.store import Store
from gracekit.store.remote.publishing import publish_versions
from gracekit.training import Coreset
from tests.exported import content_of
from tests.lossy_proxy import LossyProxy, lossy_proxy
from tests.patience import until
from tests.published import contents, expected, make_history, whole_versions
from tests.remote_uploads import upload
from tests.stores import make_draft
from tests.tiny import recipe_content, write_checkpoint, write_data

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server; its objects end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    beside = str(Path(sys.executable).parent)
    found = shutil.which("moto_server", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, "there is no moto_server; `make test-s3` installs it"
    command = [found, "-p", str(number)]
    server = subprocess.Popen(command, stdout=log, stderr=log)

    def answers() -> bool:
        assert server.poll() is None, "moto_server has ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{number}/moto-api/").close()
        except urllib.error.URLError:
            return False
        return True

    try:
        until(answers, "the server")
        make = urllib.request.Request(f"http://127.0.0.1:{number}/bucket", method="PUT")
        urllib.request.urlopen(make).close()
        yield number
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LossyProxy]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    fast = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5)}
    monkeypatch.setitem(folder._RETRIES, "backoff", {**fast, "base": 2})
    with lossy_proxy(port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def url(tmp_path: Path, proxy: LossyProxy) -> str:
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_history(tmp_path_factory.mktemp("prepared") / "store").paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_put_if_absent_and_large_objects(url: str, tmp_path: Path) -> None:
    remote = RemoteFolder.open(url)
    assert remote.write_new("k", b"first")
    assert remote.write_new("k", b"first")
    assert not remote.write_new("k", b"other")
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 80_000)  # 20 MB: uploaded and downloaded in parts
    remote.write("large", large)
    assert remote.holds("large", large)
    remote.download(remote.list()["large"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    remote.remove("k")
    assert list(remote.list()) == ["large"]


def test_a_lost_answer_to_put_if_absent_is_looked_up(url: str, proxy: LossyProxy) -> None:
    remote = RemoteFolder.open(url)
    # The library repeats the request and meets its own object: 412.
    proxy.fault = lambda k, method, path: "lose" if method == "PUT" and k == 1 else None
    assert remote.write_new("k", b"ours")
    assert sum(seen.startswith("PUT") for seen in proxy.seen) >= 2
    assert not remote.write_new("k", b"theirs")
    assert remote.read("k") == b"ours"


def test_what_is_published_is_the_store_and_the_trainer_reads_it(
    store: Store, url: str, tmp_path: Path
) -> None:
    publish_versions(store, url)
    assert contents(url) == expected(store)
    for version in (2, 4):
        assert (
            Coreset.load(url, version).to_arrow()
            == Coreset.load(store.paths.root, version).to_arrow()
        )
    store.renew().gc(1)
    publish_versions(store.renew(), url)
    assert contents(url) == expected(store)


@pytest.mark.parametrize("fault", ["lose", "drop", "throttle"])
def test_an_export_over_a_bad_line(fault: str, url: str, proxy: LossyProxy, tmp_path: Path) -> None:
    rows = content_of([{"prompt": f"is {i}", "completion": f"the {i}"} for i in range(50)])
    proxy.fault = lambda k, method, path: fault if k % 3 == 0 else None
    for _ in range(20):
        try:
            export(rows, "jsonl", f"{url}/subset")
            break
        except RemoteError:
            continue
    proxy.fault = lambda k, method, path: None
    export(rows, "jsonl", tmp_path / "subset")
    found = RemoteFolder.open(f"{url}/subset")
    assert set(found.list()) == {path.name for path in (tmp_path / "subset").iterdir()}
    for name in ("coreset.jsonl", "README.md"):
        assert found.read(name) == (tmp_path / "subset" / name).read_bytes()
    with pytest.raises(ExportError, match="earlier export"):
        export(rows, "jsonl", f"{url}/subset")


@pytest.mark.parametrize("fault", ["lose", "drop", "throttle", "cut"])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_publishing_and_reading_over_a_bad_line(
    every: int, fault: str, store: Store, url: str, proxy: LossyProxy, tmp_path: Path
) -> None:
    proxy.fault = lambda k, method, path: fault if k % every == 0 else None
    for _ in range(20):
        try:
            publish_versions(store.renew(), url)
            break
        except RemoteError:
            bad, proxy.fault = proxy.fault, lambda k, method, path: None
            whole_versions(url, tmp_path)
            proxy.fault = bad
    there = None
    for _ in range(20):
        try:
            there = Coreset.load(url).to_arrow()
            break
        except RemoteError:
            continue
    assert there == Coreset.load(store.paths.root).to_arrow()
    proxy.fault = lambda k, method, path: None
    assert contents(url) == expected(store)


def test_errors_say_what_to_do(url: str, proxy: LossyProxy) -> None:
    remote = RemoteFolder.open(url)
    with pytest.raises(RemoteNotFoundError, match="there is no such bucket"):
        RemoteFolder.open("s3://no-such-bucket/x").list()
    with pytest.raises(RemoteNotFoundError, match="it is not there"):
        remote.read("none")
    proxy.fault = lambda k, method, path: "deny"
    for work in (remote.list, lambda: remote.write_new("k", b""), lambda: remote.read("k")):
        with pytest.raises(RemoteDeniedError, match="AWS_ACCESS_KEY_ID"):
            work()
    proxy.fault = lambda k, method, path: "throttle"
    with pytest.raises(RemoteError, match="the service throttles; run again later"):
        remote.list()
    proxy.fault = lambda k, method, path: "drop"
    with pytest.raises(RemoteError, match="not reached"):
        remote.list()


def test_a_stalled_connection_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder._TIMES, "read_timeout", "200ms")
    monkeypatch.setitem(folder._RETRIES, "max_retries", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RemoteError, match=r"no answer in time|not reached"):
            RemoteFolder.open(url).list()


def test_a_run_and_its_versions_all_in_the_object_store(url: str, tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = gracekit.Recipe.from_dict(
        recipe_content(publish={"url": f"{url}/published"}), folder=tmp_path
    )
    run = RemoteFolder.open(f"{url}/run")
    for step in (10, 20):
        upload(run, write_checkpoint(tmp_path / "saved", step))
        report = gracekit.watch(recipe, run.url, once=True)
        assert report.num_published == 1
        assert Coreset.load(f"{url}/published").step == step
    assert contents(f"{url}/published") == expected(Store.open(tmp_path / "store"))


def test_the_history_is_read_by_polars_and_duckdb(
    store: Store, url: str, proxy: LossyProxy, tmp_path: Path
) -> None:
    polars = pytest.importorskip("polars")
    store.commit(make_draft(store, "five"))
    publish_versions(store.renew(), url)
    options = {
        "aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region": "us-east-1",
        "aws_endpoint_url": proxy.url, "aws_allow_http": "true",
    }  # fmt: skip
    scores = polars.scan_parquet(
        f"{url}/score_history/**/*.parquet", hive_partitioning=True, storage_options=options
    ).collect()
    here = store.paths.root
    with duckdb.connect() as own:
        query = "SELECT version, count(*) FROM read_parquet('{}/*/*.parquet', hive_partitioning = true) GROUP BY 1 ORDER BY 1"  # noqa: E501
        by_version = own.sql(query.format(here / "score_history")).fetchall()
        found = scores.group_by("version").len().sort("version").rows()
        assert [(int(v), n) for v, n in found] == [(int(v), n) for v, n in by_version]
        copy = RemoteFolder.open(url)
        for name, one in copy.list("manifests").items():
            copy.download(one, tmp_path / "copy" / name)
        rows = own.sql(f"SELECT count(*), max(version) FROM '{tmp_path}/copy/manifests/*.parquet'")
        assert (
            rows.fetchall()
            == own.sql(
                f"SELECT count(*), max(version) FROM '{here}/manifests/*.parquet'"
            ).fetchall()
        )
