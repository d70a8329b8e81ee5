"""A run in an object store: its newest checkpoints on this disk, whole, downloaded once."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gracekit.checkpoints import RemoteRun, find_checkpoints, watch_checkpoints
from gracekit.checkpoints.remote_groups import (
    followed_groups,
    split,
    wanted_groups,
    wanted_objects,
)
from gracekit.errors import RemoteError, RemoteNotFoundError, StoreWriteError, UsageError
from gracekit.recipe import CheckpointSection
from gracekit.remote import RemoteFolder, RemoteObject
from gracekit.types import Checkpoint
from tests.faults import Killed
from tests.faults import killed_at as disk_killed_at
from tests.remote_faults import SLOW, cut_short, fails_with, in_place_of, kill, kill_after
from tests.remote_uploads import files_below, remove, upload, uploading
from tests.tiny import write_checkpoint

LATEST = CheckpointSection(poll_interval_s=5, settle_s=0)
ALL = LATEST.model_copy(update={"on_backlog": "all"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint-10, -20, -30 of a run."""
    run = tmp_path_factory.mktemp("saved") / "run"
    for step in (10, 20, 30):
        write_checkpoint(run, step)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder.open(f"memory://{tmp_path.name}/bucket/sft")


def run_of(folder: RemoteFolder, tmp_path: Path, settings: CheckpointSection = LATEST) -> RemoteRun:
    return RemoteRun(folder.url, tmp_path / "cache", settings)


def steps(run: RemoteRun, settings: CheckpointSection = LATEST) -> list[int]:
    return [found.step for found in find_checkpoints(run.directory, settings)]


def names(run: RemoteRun) -> set[str]:
    return {path.name for path in run.directory.iterdir()}


def test_the_newest_checkpoints_are_downloaded_once_and_dropped_when_newer_ones_come(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    run = run_of(folder, tmp_path)
    run.sync()
    assert run.directory.name == "sft"
    assert steps(run) == []
    for step in (10, 20, 30):
        upload(folder, saved / f"checkpoint-{step}")
        run.sync()
        name = f"checkpoint-{step}"
        assert files_below(run.directory / name) == files_below(saved / name)
    assert steps(run) == [20, 30]
    assert names(run) == {"checkpoint-20", "checkpoint-30"}
    for _ in range(2):
        with in_place_of(lambda k, name: False, kill) as seen:
            run.sync()
        assert seen == ["list_objects"], "what is here is not downloaded again"
        run.close()
        run = run_of(folder, tmp_path)
    remove(folder, "checkpoint-30")
    run.sync()
    assert steps(run) == [10, 20]


def test_times_are_those_of_the_object_store(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    found = []
    for cache in ("one", "two"):
        run = RemoteRun(folder.url, tmp_path / cache, LATEST)
        run.sync()
        found.append(find_checkpoints(run.directory, LATEST)[0].completed_at)
    assert found[0] == found[1], "so a lost cache makes no version twice"


def test_an_optimizer_is_left_out_unless_a_score_needs_it(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    folder.write("checkpoint-10/optimizer.pt", b"moments")
    run_of(folder, tmp_path).sync()
    run = RemoteRun(folder.url, tmp_path / "other", LATEST, with_optimizer=True)
    run.sync()
    here = run_of(folder, tmp_path).directory / "checkpoint-10"
    assert not (here / "optimizer.pt").exists()
    assert (run.directory / "checkpoint-10" / "optimizer.pt").read_bytes() == b"moments"


def test_data_and_logs_of_a_run_are_not_downloaded(
    folder: RemoteFolder, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gracekit.checkpoints.remote_groups.SMALL_BYTES", 100)
    upload(folder, saved / "checkpoint-10")
    folder.write("data/train.parquet", bytes(101))
    folder.write("README.md", b"small")
    folder.write("final/model.safetensors", bytes(200))
    run = run_of(folder, tmp_path)
    run.sync()
    assert names(run) == {"checkpoint-10", "README.md", "final"}


def objects(*named: tuple[str, float]) -> dict[str, RemoteObject]:
    return {
        name: RemoteObject(name=name, num_bytes=1, etag=str(time), modified_at=time)
        for name, time in named
    }


def test_groups_runs_and_what_is_wanted() -> None:
    groups, loose = split(
        objects(
            ("a/checkpoint-1/model.safetensors", 1.0), ("a/checkpoint-2/x/config.json", 2.0),
            ("b/checkpoint-1/config.json", 3.0), ("a/checkpoint-3/config.json", 4.0),
            ("a", 5.0), ("a/notes.txt", 6.0), ("last.ckpt", 0.5), ("x/y/z/u/v/w/7.ckpt", 9.0),
        ),
        depth=4,
    )  # fmt: skip
    assert [g.name for g in groups] == [
        "last.ckpt", "a/checkpoint-1", "a/checkpoint-2", "b/checkpoint-1", "a/checkpoint-3",
    ]  # fmt: skip
    assert "a" not in {o.name for o in loose}, "an object that stands for a folder"
    followed, others, why = followed_groups(groups, {})
    assert ([g.name for g in followed], others) == (["last.ckpt"], ["a", "b"])
    assert why == "which is in the folder itself"
    run = [g for g in groups if g.run == "a"]
    assert [g.name for g in wanted_groups(run, [], in_turn=False)] == [
        "a/checkpoint-2", "a/checkpoint-3",
    ]  # fmt: skip
    done = [run[0].signature]
    assert [g.name for g in wanted_groups(run, [], in_turn=True)] == [
        "a/checkpoint-1", "a/checkpoint-2",
    ]  # fmt: skip
    assert wanted_groups(run, done, in_turn=True) == run
    half = [group.signature for group in run[1:]]
    assert wanted_groups(run, [], half, in_turn=False) == run, "a place for one that may be whole"


def watched(
    run: RemoteRun, settings: CheckpointSection, script: Iterator[object]
) -> Iterator[Checkpoint]:
    """What a watcher yields while a script goes on a step at each of its waits."""
    stop, now = threading.Event(), [0.0]

    def wait(seconds: float) -> bool:
        now[0] += seconds
        if next(script, None) is None:
            stop.set()
        run.sync()
        return stop.is_set()

    run.sync()
    return watch_checkpoints(
        run.directory, settings, is_done=lambda c: False, stop=stop, clock=lambda: now[0], wait=wait
    )


@pytest.mark.parametrize(
    "weights",
    [
        ["pytorch_model_fsdp.bin"],
        ["pytorch_model_fsdp_0_rank0.bin", "pytorch_model_fsdp_0_rank1.bin"],
        ["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"],
        ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"],
    ],
)
@pytest.mark.parametrize(
    ("url_name", "place"), [("checkpoint_3", ""), ("sft", ""), ("sft", "last/")]
)
def test_large_weights_of_fsdp_are_downloaded(
    weights: list[str], url_name: str, place: str
) -> None:
    """At a URL that is a checkpoint's own, and in a folder without a number."""
    wanted = {f"{place}{name}" for name in (*weights, "tokenizer.json")}
    found = {
        name: RemoteObject(name=name, num_bytes=1 << 30, etag="x", modified_at=1.0)
        for name in (*wanted, f"{place}data.bin")
    }
    groups, loose = split(found, 3, url_name)
    assert [group.name for group in groups] == ([] if place else [""])
    got = wanted_objects(groups, loose, others=(), with_optimizer=False, with_all=False)
    assert set(got) == (wanted if place else set(found))


@pytest.mark.parametrize("name", ["pytorch_model_fsdp.bin", "pytorch_model_fsdp_0/__0_0.distcp"])
def test_weights_of_fsdp_in_folders_of_steps_do_not_make_the_run_a_checkpoint(name: str) -> None:
    one = RemoteObject(name=f"checkpoint_3/{name}", num_bytes=1, etag="x", modified_at=1.0)
    groups, _ = split({one.name: one}, 3, "sft")
    assert [group.name for group in groups] == ["checkpoint_3"]


@pytest.mark.parametrize("settings", [LATEST, ALL])
def test_a_checkpoint_that_is_being_uploaded_is_taken_when_it_is_whole(
    settings: CheckpointSection, folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    def script() -> Iterator[object]:
        for step in (10, 20, 30):
            yield from uploading(folder, saved / f"checkpoint-{step}")
            yield step

    run, taken = run_of(folder, tmp_path, settings), []
    for checkpoint in watched(run, settings, script()):
        name = checkpoint.path.name
        assert files_below(checkpoint.path) == files_below(saved / name)
        run.handled(checkpoint.path)
        taken.append(checkpoint.step)
    assert taken == [10, 20, 30]


def test_a_layout_without_a_marker_waits_until_it_is_quiet(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    settings = LATEST.model_copy(update={"settle_s": 12})
    own = {p: c for p, c in files_below(saved / "checkpoint-10").items() if "trainer_" not in p}
    seen: list[str] = []

    def script() -> Iterator[object]:
        # The tokenizer comes last: without it the model is whole already.
        for name in sorted(own, key=lambda name: ("token" in name, name)):
            folder.write(f"step_10/{name}", own[name])
            seen.append(name)
            yield name
        yield from ("quiet", "quiet", "quiet", "quiet")

    run = run_of(folder, tmp_path, settings)
    for checkpoint in watched(run, settings, script()):
        assert len(seen) == len(own)
        assert files_below(checkpoint.path) == own
        break
    else:
        pytest.fail("it was never taken")


def test_each_in_turn_over_a_restart(folder: RemoteFolder, saved: Path, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        upload(folder, saved / f"checkpoint-{step}")
    taken = []
    for _ in range(3):
        with run_of(folder, tmp_path, ALL) as run:  # a start of its own
            run.sync()
            assert len(list(run.directory.iterdir())) <= 3
            waiting = [c for c in find_checkpoints(run.directory, ALL) if c.step not in taken]
            run.handled(waiting[0].path)
            taken.append(waiting[0].step)
    assert taken == [10, 20, 30]


def test_an_object_that_is_written_again_is_downloaded_again(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    run = run_of(folder, tmp_path)
    run.sync()
    weights = (saved / "checkpoint-20" / "model.safetensors").read_bytes()
    folder.write("checkpoint-10/model.safetensors", weights)
    run.sync()
    assert (run.directory / "checkpoint-10" / "model.safetensors").read_bytes() == weights


def test_of_several_runs_one_is_followed_and_that_is_said(
    folder: RemoteFolder, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    upload(folder, saved / "checkpoint-10", "run-1/checkpoint-10")
    upload(folder, saved / "checkpoint-20", "run-2/checkpoint-20")
    upload(folder, saved / "checkpoint-30", "run-1/checkpoint-30")
    run = run_of(folder, tmp_path)
    run.sync()
    run.sync()
    assert names(run) == {"run-2"}
    assert caplog.text.count("has 2 runs; following run-2, which began last") == 1


@pytest.mark.parametrize("death", [kill, kill_after])
def test_killed_at_every_call_the_next_start_has_the_whole_checkpoint(
    death: object, folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    upload(folder, saved / "checkpoint-20")
    with in_place_of(lambda k, name: False, kill) as calls:
        RemoteRun(folder.url, tmp_path / "counted", LATEST).sync()
    for k in range(1, len(calls) + 1):
        cache = tmp_path / f"cache-{k}"
        meant = lambda count, name, k=k: count >= k  # noqa: E731
        with (
            in_place_of(meant, death),  # type: ignore[arg-type]
            pytest.raises(Killed),
            RemoteRun(folder.url, cache, LATEST) as run,
        ):
            run.sync()
        again = RemoteRun(folder.url, cache, LATEST)
        with in_place_of(lambda k, name: False, kill) as seen:
            again.sync()
        assert len(seen) <= len(calls) - max(k - 2, 0), "finished downloads are kept"
        assert files_below(again.directory) == {
            f"checkpoint-{step}/{name}": content
            for step in (10, 20)
            for name, content in files_below(saved / f"checkpoint-{step}").items()
        }


def test_killed_at_every_operation_of_the_disk(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    k, was_killed = 0, True
    while was_killed:
        k += 1
        cache, was_killed = tmp_path / f"cache-{k}", False
        try:
            with RemoteRun(folder.url, cache, LATEST) as run, disk_killed_at(k, torn=True):
                run.sync()
        except Killed:
            was_killed = True
        again = RemoteRun(folder.url, cache, LATEST)
        again.sync()
        name = "checkpoint-10"
        assert files_below(again.directory / name) == files_below(saved / name), k
        assert names(again) == {name}
    assert k > 20


@pytest.mark.parametrize("fault", [fails_with(SLOW), cut_short])
def test_a_download_that_fails_is_an_error_and_goes_on_later(
    fault: object, folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    run = run_of(folder, tmp_path)
    with (
        in_place_of(lambda k, name: k > 4, fault),  # type: ignore[arg-type]
        pytest.raises(RemoteError),
    ):
        run.sync()
    assert not run.directory.exists() or not names(run), "nothing of it is seen"
    run.sync()
    assert steps(run) == [10]


def test_a_disk_that_is_full_is_an_error_of_the_store(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    (tmp_path / "cache").write_text("a file where the cache is to be")
    with pytest.raises(StoreWriteError, match="part of its path is a file"):
        run_of(folder, tmp_path).sync()


def test_a_bucket_that_is_not_there(tmp_path: Path) -> None:
    run = RemoteRun(f"file://{tmp_path}/none", tmp_path / "cache", LATEST)
    with pytest.raises(RemoteNotFoundError, match="there is no such directory"):
        run.sync()


@pytest.mark.parametrize("url", ["s3://bucket/sft/..", "s3://bucket/../sft", "memory://./sft"])
def test_an_address_with_dots_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has \. or \.\. as a part"):
        RemoteRun(url, tmp_path, LATEST)


@pytest.mark.parametrize("name", ["arriving", "downloaded.json", "run", "n" * 250])
def test_a_run_may_have_any_name(name: str, saved: Path, tmp_path: Path) -> None:
    folder = RemoteFolder.open(f"memory://{tmp_path.name}/{name}")
    upload(folder, saved / "checkpoint-10")
    for _ in range(2):
        with run_of(folder, tmp_path) as run:
            run.sync()
            run.sync()
            assert steps(run) == [10]


def test_a_second_process_has_a_folder_of_its_own(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    """As `doctor` beside a daemon: it takes nothing away, also between two downloads."""
    upload(folder, saved / "checkpoint-10")
    folder.write("checkpoint-10/optimizer.pt", b"moments")
    looks = []

    def second() -> None:
        with run_of(folder, tmp_path) as other:
            other.sync()
            assert steps(other) == [10]
        assert not other.directory.exists()
        looks.append(other.directory)

    with RemoteRun(folder.url, tmp_path / "cache", LATEST, with_optimizer=True) as run:
        run.sync(second)
        assert looks and run.directory not in looks
        second()
        assert (run.directory / "checkpoint-10" / "optimizer.pt").exists()
    with run_of(folder, tmp_path) as run:
        run.sync()
        assert run.directory not in looks, "the first one's is free"


def test_a_daemon_waits_for_what_another_process_has(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    first, waited = run_of(folder, tmp_path), list[int]()
    first.sync()

    def between() -> None:
        waited.append(1)
        if len(waited) == 2:
            first.close()

    with RemoteRun(folder.url, tmp_path / "cache", LATEST, waits=True) as run:
        run.sync(between)
        assert (len(waited), run.directory, steps(run)) == (2, first.directory, [10])


def test_a_file_that_was_deleted_or_cut_is_downloaded_again(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    run = run_of(folder, tmp_path)
    run.sync()
    (run.directory / "checkpoint-10" / "config.json").unlink()
    (run.directory / "checkpoint-10" / "model.safetensors").write_bytes(b"cut")
    run.sync()
    assert files_below(run.directory / "checkpoint-10") == files_below(saved / "checkpoint-10")
    shutil.rmtree(tmp_path / "cache")
    run.sync()
    assert steps(run) == [10]
    shutil.rmtree(tmp_path / "cache")
    remove(folder, "checkpoint-10")
    run.sync()
    assert steps(run) == [], "what is neither here nor there is forgotten"


def test_downloads_that_are_no_longer_wanted_are_removed(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    with (
        in_place_of(lambda k, name: k > 4, fails_with(SLOW)),
        pytest.raises(RemoteError),
        run_of(folder, tmp_path) as run,
    ):
        run.sync()
    kept = len(files_below(tmp_path / "cache"))
    remove(folder, "checkpoint-10")
    with run_of(folder, tmp_path) as run:
        run.sync()
    assert len(files_below(tmp_path / "cache")) < kept
    assert not any(p.parent.name == "arriving" for p in (tmp_path / "cache").rglob("*"))


def test_of_other_urls_what_was_used_last_is_kept(saved: Path, tmp_path: Path) -> None:
    directories = []
    for step in (10, 20, 30):
        one = RemoteFolder.open(f"memory://{tmp_path.name}/sft/checkpoint-{step}")
        for path in (saved / f"checkpoint-{step}").iterdir():
            one.write(path.name, path)
        with run_of(one, tmp_path) as run:
            run.sync()
            directories.append(run.directory)
    assert [directory.exists() for directory in directories] == [False, True, True]


@pytest.mark.parametrize("settings", [LATEST, ALL])
def test_uploads_that_were_given_up_take_no_place_of_whole_checkpoints(
    settings: CheckpointSection, folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    def half(name: str) -> None:
        folder.write(f"{name}/config.json", saved / "checkpoint-10" / "config.json")

    for step in (1, 2, 3):
        half(f"checkpoint-{step}")
    upload(folder, saved / "checkpoint-10")
    for step in (11, 12, 13):
        half(f"checkpoint-{step}")
    for _ in range(2):
        with run_of(folder, tmp_path, settings) as run:
            run.sync()
            assert steps(run, settings) == [10]
            assert len(names(run)) <= 4
            with in_place_of(lambda k, name: False, kill) as seen:
                run.sync()
            assert seen == ["list_objects"]


def test_results_of_an_evaluation_are_no_run(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    folder.write("eval/checkpoint-10/results.json", b"{}")
    with run_of(folder, tmp_path) as run:
        run.sync()
        assert steps(run) == [10]


def test_the_run_in_the_folder_itself_is_followed(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    upload(folder, saved / "checkpoint-10")
    upload(folder, saved / "checkpoint-20", "other/checkpoint-20")
    with run_of(folder, tmp_path) as run:
        run.sync()
        assert steps(run) == [10]


def test_of_two_runs_that_go_on_always_the_same_is_followed(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    """Each keeps its newest checkpoint alone."""
    followed = []
    with run_of(folder, tmp_path) as run:
        for number, step in enumerate((10, 20, 30)):
            for name in ("a", "b"):
                upload(folder, saved / f"checkpoint-{step}", f"{name}/checkpoint-{step}")
                if number:
                    remove(folder, f"{name}/checkpoint-{step - 10}")
                run.sync()
                followed.append(names(run))
    assert followed == [{"a"}, *[{"b"}] * 5]


def test_a_checkpoint_that_is_named_is_downloaded_whole(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gracekit.checkpoints.remote_groups.SMALL_BYTES", 1)
    for url_name, inner in (("checkpoint-10", "global_step10"), ("model", "onnx")):
        one = RemoteFolder.open(f"memory://{tmp_path.name}/sft/{url_name}")
        for path in (saved / "checkpoint-10").iterdir():
            one.write(path.name, path)
        one.write(f"{inner}/states.pt", b"of another library")
        one.write("optimizer.pt", b"moments")
        with run_of(one, tmp_path) as run:
            run.sync()
            assert set(files_below(run.directory)) == set(one.list()) - {"optimizer.pt"}


def test_a_large_tokenizer_beside_a_model_of_a_run_is_downloaded(
    folder: RemoteFolder, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gracekit.checkpoints.remote_groups.SMALL_BYTES", 1)
    upload(folder, saved / "checkpoint-10")
    for name in ("final/model.safetensors", "final/tokenizer.json", "data/vocab.json"):
        folder.write(name, bytes(10))
    with run_of(folder, tmp_path) as run:
        run.sync()
        others = {name for name in files_below(run.directory) if "checkpoint-10" not in name}
        assert others == {"final/model.safetensors", "final/tokenizer.json"}


def test_an_object_of_a_name_that_no_disk_can_have_is_left_out_and_told_of(
    folder: RemoteFolder, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload(folder, saved / "checkpoint-10")
    folder.write(f"logs/{'a' * 300}.txt", b"x")
    with run_of(folder, tmp_path) as run:
        run.sync()
        run.sync()
        assert steps(run) == [10]
    assert caplog.text.count("names that no file of this machine can have") == 1


def test_what_was_incomplete_for_an_earlier_recipe_is_looked_at_again(
    folder: RemoteFolder, saved: Path, tmp_path: Path
) -> None:
    needs_marker = ALL.model_copy(update={"ready_marker": "DONE"})
    for step in (10, 20, 30):
        upload(folder, saved / f"checkpoint-{step}")
    for settings, expected in ((needs_marker, []), (ALL, [10, 20])):
        with run_of(folder, tmp_path, settings) as run:
            run.sync()
            assert steps(run, settings) == expected
