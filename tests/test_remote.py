"""Remote folders: objects are whole or absent, unclear outcomes are looked up, errors say why."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gracekit
from gracekit.errors import (
    RecipeError,
    RemoteChangedError,
    RemoteDeniedError,
    RemoteError,
    RemoteNotFoundError,
    UsageError,
)
from gracekit.files import TEMPORARY_MARK, sha256
from gracekit.recipe import Recipe
from gracekit.remote import RemoteFolder, address_of, cache_folder, folder, is_url, require_path
from gracekit.training import CoresetSampler
from tests.drawable import drawable_store
from tests.remote_faults import (
    CUT,
    DENIED,
    SLOW,
    THROTTLED,
    Fault,
    cut_short,
    fails_after,
    fails_with,
    in_place_of,
)
from tests.tiny import recipe_content


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteFolder:
    kind = request.param
    url = f"file://{tmp_path}/bucket" if kind == "file" else f"memory://{tmp_path.name}"
    return RemoteFolder.open(url, create=True)


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),
        (Path("file:///tmp/run"), "file:///tmp/run"),
        ("gs://b", "gs://b"),
        ("runs/sft", None),
        ("s3:/bucket", None),
        (Path("runs/s3:/bucket"), None),
        ("https://example.org/x", None),
        (3, None),
    ],
)
def test_urls_are_told_from_paths(place: object, url: str | None) -> None:
    assert address_of(place) == url
    assert is_url(place) == (url is not None)


@pytest.mark.parametrize("url", ["hf://user/set", "https://example.org/x", "S3://bucket/run"])
def test_a_url_that_is_not_opened_makes_no_folder_here(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export said that it was there, and lay in a folder `hf:`."""
    monkeypatch.chdir(tmp_path)
    drawable_store(tmp_path / "store")
    asked: list[Callable[[str | Path], object]] = [
        lambda place: gracekit.export("store", place),
        lambda place: gracekit.export("store", versions_in=place),
        lambda place: gracekit.doctor(place),
        lambda place: gracekit.status(place),
        lambda place: CoresetSampler(place, 4),
    ]
    for ask in asked:
        for place in (url, Path(url)):
            with pytest.raises(
                UsageError, match=rf"found one of {url[:4].rstrip(':/')}\w*://, whic"
            ):
                ask(place)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (tmp_path / "run:").mkdir()  # a folder may be called so
    require_path(Path("run:/x"), "a store")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:HIDDEN@bucket/run",
        "s3://KEYID:HID/DEN@bucket/run",
        "s3://HIDDEN@bucket/run",
        "abfss://KEYID:HIDDEN@account.dfs.core.windows.net/run",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    assert is_url(url)
    for place in (url, Path(url)):
        with pytest.raises(UsageError, match="has credentials in it") as caught:
            address_of(place)
        assert "HID" not in str(caught.value)
        assert "KEYID" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"publish: a URL of .* has credentials in it") as told:
        Recipe.from_dict(recipe_content(publish={"url": url}))
    assert "HID" not in str(told.value)
    assert address_of("abfss://box@account.dfs.core.windows.net/run") is not None


@pytest.mark.parametrize(("sign", "code"), [("#", "%23"), ("?", "%3F")])
def test_what_would_be_cut_off_of_a_url_is_refused(sign: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"after file://{tmp_path}/run; .* write {code}") as told:
        RemoteFolder.open(f"file://{tmp_path}/run{sign}sig=SECRET", create=True)
    assert "SECRET" not in str(told.value)
    assert list(tmp_path.iterdir()) == []
    place = tmp_path / f"run{sign}1"
    RemoteFolder.open(place.as_uri(), create=True).write("k", b"content")
    assert (place / "k").read_bytes() == b"content"


def test_a_directory_of_any_name_has_a_url(tmp_path: Path) -> None:
    place = tmp_path / "my bücket 100%"
    RemoteFolder.open(place.as_uri(), create=True).write("k", b"content")
    assert RemoteFolder.open(place.as_uri()).read("k") == b"content"
    assert (place / "k").read_bytes() == b"content"


def test_without_a_home_directory_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRACEKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    with pytest.raises(UsageError, match=r"no home directory .* set GRACEKIT_CACHE"):
        cache_folder()


def test_what_is_written_is_listed_read_and_downloaded(
    remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PART_BYTES", 1000)
    source, final = tmp_path / "source", tmp_path / "new" / "copy"
    source.write_bytes(bytes(range(256)) * 20)
    remote.write("a/version=000001/b.bin", source)
    remote.write("c", b"")
    assert {name: found.num_bytes for name, found in remote.list().items()} == {
        "a/version=000001/b.bin": 5120,
        "c": 0,
    }
    assert list(remote.list("a")) == ["a/version=000001/b.bin"]
    found = remote.list()["a/version=000001/b.bin"]
    remote.download(found, final, sha256=sha256(source))
    assert final.read_bytes() == source.read_bytes()
    assert final.stat().st_mtime == pytest.approx(found.modified_at, abs=1e-3)
    remote.download(remote.list()["c"], tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""
    remote.remove("c")
    remote.remove("c")
    assert remote.look_up("c") is None
    with pytest.raises(RemoteNotFoundError, match=r"read c at .*it is not there"):
        remote.read("c")


def test_names_that_no_file_can_have_are_passed_over_with_one_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    remote = RemoteFolder.open(f"memory://{tmp_path.name}")
    names = ["a/plain", "x" + "ü" * 127]
    for name in (*names, "b/" + "ü" * 128 + "/x"):
        remote.write(name, b"content")
    for _ in range(2):
        assert list(remote.list()) == names
    assert caplog.text.count(f"passed over at {remote.url}: names that no file") == 1
    assert "1 of them, such as b/ü" in caplog.text
    for found in remote.list().values():
        remote.download(found, tmp_path / "copy" / found.name)


def test_an_object_with_the_name_of_a_folder_is_left_out(tmp_path: Path) -> None:
    remote = RemoteFolder.open(f"memory://{tmp_path.name}")
    remote.write("checkpoint-10", b"")
    remote.write("checkpoint-10/config.json", b"{}")
    remote.write("checkpoint-100", b"content")
    assert list(remote.list()) == ["checkpoint-10/config.json", "checkpoint-100"]


ANSWER = """<?xml version="1.0"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>
<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size>
</Contents></ListBucketResult>"""


@pytest.mark.parametrize("key", ["run//x", "run/../x", "run/a/./x", "run/a\nb"])
def test_a_name_that_cannot_be_listed_is_told(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ANSWER.format(key=key).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(RemoteError, match="rename or remove it") as caught:
            RemoteFolder.open("s3://b/run").list()
        assert key.replace("\n", " ") in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_put_if_absent(remote: RemoteFolder, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"first")
    assert remote.write_new("k", b"first")
    assert remote.write_new("k", b"first"), "the same content counts as written"
    assert remote.write_new("k", tmp_path / "same")
    assert not remote.write_new("k", b"other")
    assert not remote.write_new("k", b"fir")
    assert remote.read("k") == b"first"


def test_a_lost_answer_counts_as_written(remote: RemoteFolder) -> None:
    with in_place_of(lambda k, name: name == "put_object", fails_after(SLOW)):
        assert remote.write_new("new", b"content")
        remote.write("over", b"content")
    assert remote.read("new") == remote.read("over") == b"content"


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (fails_with(THROTTLED), RemoteError, "throttles; run again later"),
        (fails_with(DENIED), RemoteDeniedError, "access is denied; check the credentials"),
        (fails_with(SLOW), RemoteError, "no answer in time"),
    ],
)
def test_a_write_that_was_not_made_is_an_error(
    remote: RemoteFolder, fault: Fault, error: type[RemoteError], words: str
) -> None:
    with in_place_of(lambda k, name: name == "put_object", fault):
        for write in (remote.write, remote.write_new):
            with pytest.raises(error, match=words):
                write("k", b"content")
    assert remote.list() == {}


def test_a_write_that_is_refused_is_not_called_unclear(remote: RemoteFolder) -> None:
    with in_place_of(lambda k, name: True, fails_with(DENIED)) as seen:
        for write in (remote.write, remote.write_new):
            with pytest.raises(RemoteDeniedError, match="cannot write k"):
                write("k", b"content")
    assert seen == ["put_object", "put_object"]


def test_a_write_that_nobody_can_look_up_is_told_as_unclear(remote: RemoteFolder) -> None:
    meant = lambda k, name: name in ("put_object", "head_object")  # noqa: E731
    with in_place_of(meant, fails_after(SLOW)), pytest.raises(RemoteError, match="unclear whether"):
        remote.write_new("k", b"content")
    assert remote.write_new("k", b"content"), "it had been written, and is not written twice"


def test_another_writer_s_object_after_a_lost_answer_is_not_taken_for_ours(
    remote: RemoteFolder,
) -> None:
    remote.write("k", b"theirs")
    with in_place_of(lambda k, name: name == "put_object", fails_with(SLOW)):
        assert not remote.write_new("k", b"ours")
    assert remote.read("k") == b"theirs"


def test_a_listing_that_is_cut_is_asked_for_again(remote: RemoteFolder) -> None:
    remote.write("k", b"content")
    with in_place_of(lambda k, name: k < 3, fails_with(CUT)) as seen:
        assert list(remote.list()) == ["k"]
    assert len(seen) == 3
    with (
        in_place_of(lambda k, name: True, fails_with(CUT)),
        pytest.raises(RemoteError, match="the answer was cut off"),
    ):
        remote.list()


def test_a_download_that_comes_short_leaves_nothing(remote: RemoteFolder, tmp_path: Path) -> None:
    remote.write("k", b"0123456789")
    found, final = remote.list()["k"], tmp_path / "out" / "k"
    with (
        in_place_of(lambda k, name: name == "get_part", cut_short) as seen,
        pytest.raises(RemoteError, match="5 bytes came of 10 from byte 0 on, 3 times"),
    ):
        remote.download(found, final)
    assert seen == ["get_part"] * 3
    assert list((tmp_path / "out").iterdir()) == []
    with in_place_of(lambda k, name: k == 1, cut_short):
        remote.download(found, final)
    assert final.read_bytes() == b"0123456789"


def test_an_object_that_is_replaced_meanwhile_is_not_mixed(
    remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PART_BYTES", 5)
    remote.write("k", b"old--old--")
    found = remote.list()["k"]
    remote.write("k", b"new--new--and more")
    with pytest.raises(RemoteChangedError, match="replaced meanwhile"):
        remote.download(found, tmp_path / "k")
    assert [p.name for p in tmp_path.iterdir() if TEMPORARY_MARK in p.name or p.name == "k"] == []


def test_content_of_another_hash_is_refused(remote: RemoteFolder, tmp_path: Path) -> None:
    remote.write("k", b"0123456789")
    with pytest.raises(RemoteError, match=r"k at .* is damaged: SHA-256 .* expected 00"):
        remote.download(remote.list()["k"], tmp_path / "k", sha256="00" * 32)
    assert not (tmp_path / "k").exists()


def test_addresses_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"such as s3://bucket/prefix .* found 'runs/sft'"):
        RemoteFolder.open("runs/sft")
    with pytest.raises(RemoteError, match="there is no such directory: file://"):
        RemoteFolder.open(f"file://{tmp_path}/none")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(RemoteDeniedError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        RemoteFolder.open("az://container/x")
    with pytest.raises(RemoteError, match="Unable to recognise URL"):
        RemoteFolder.open("s3://")


def test_without_obstore_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from gracekit.remote import RemoteFolder\n"
        "from gracekit.errors import RemoteError\n"
        "try: RemoteFolder.open('s3://b/x')\n"
        "except RemoteError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "s3://b/x needs obstore: pip install 'gracekit[s3]'" in done.stdout, done.stderr


def test_a_service_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(folder._RETRIES, "max_retries", 0)
    with pytest.raises(RemoteError, match="not reached; check the network, the region and AWS_END"):
        RemoteFolder.open("s3://bucket/x").list()
