"""The same guarantees on object storage: an S3 server that runs in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zarr.storage import FsspecStore

from dynamo_plugin.errors import CorruptBlock, StoreError, StoreLocked, StoreNotFound
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population, Share, open_population, verify_population
from dynamo_plugin.store._lease import Lease
from dynamo_plugin.store._location import locate

boto3 = pytest.importorskip("boto3", reason="needs the extra s3 and moto")
pytest.importorskip("s3fs", reason="needs the extra s3")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start a server, and have it asked instead of the real one."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        yield address
    server.stop()


class Bucket:
    """What lies in a bucket, seen by another client than the one that is tested."""

    def __init__(self, endpoint: str, folder: str) -> None:
        self.client: Any = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket=BUCKET)
        self.folder = folder
        self.url = f"s3://{BUCKET}/{folder}"

    def files(self) -> dict[str, bytes]:
        pages = self.client.get_paginator("list_objects_v2")
        keys = [
            each["Key"]
            for page in pages.paginate(Bucket=BUCKET, Prefix=f"{self.folder}/")
            for each in page.get("Contents", ())
        ]
        files = {key.removeprefix(f"{self.folder}/"): self.get(key) for key in keys}
        return {key: data for key, data in files.items() if not key.startswith("leases/")}

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.folder}/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.folder}/{key}")


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path) -> Bucket:
    return Bucket(endpoint, f"{tmp_path.name}/population.zarr")


def run(store: Any, **options: Any) -> Population:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {"Net/0": nn.GRU(2, 3, batch_first=True), "b": nn.LSTM(2, 2, batch_first=True)}
    inputs = [torch.linspace(-1, 1, 2 * n).reshape(n, 2) for n in (3, 1, 5, 4, 2, 6)]
    return capture(models, inputs, store, progress=False, batch_size=2, **options)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 80)


@pytest.fixture
def on_disk(tmp_path: Path) -> tuple[Population, dict[str, bytes]]:
    population = run(tmp_path / "p")
    files = {
        path.relative_to(tmp_path / "p").as_posix(): path
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    return population, {name: path.read_bytes() for name, path in files.items()}


def test_a_bucket_holds_what_a_disk_holds(
    bucket: Bucket, on_disk: tuple[Population, dict[str, bytes]]
) -> None:
    local, files = on_disk
    population = run(bucket.url)
    assert bucket.files() == files
    assert population.location == bucket.url
    assert population.inputs.hash == local.inputs.hash
    for samples in (None, [5, 0, 3, 3], []):
        for model in ("Net/0", "b"):
            np.testing.assert_array_equal(
                population.states(model, samples=samples), local.states(model, samples=samples)
            )
            np.testing.assert_array_equal(
                population.outputs(model, samples=samples), local.outputs(model, samples=samples)
            )
    assert verify_population(bucket.url).ok


def test_storage_options_go_with_a_store(
    bucket: Bucket,
    on_disk: tuple[Population, dict[str, bytes]],
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    options = {"key": "somebody", "secret": "else", "client_kwargs": {"endpoint_url": endpoint}}
    store = FsspecStore.from_url(bucket.url, storage_options=options)
    run(store)
    assert bucket.files() == on_disk[1]
    assert verify_population(store).ok


def test_resume_and_repair(bucket: Bucket, on_disk: tuple[Population, dict[str, bytes]]) -> None:
    files = on_disk[1]
    run(bucket.url)
    states = next(key.rpartition("/")[0] for key in files if key.endswith("states/gru/c.1.0"))
    for key in (f"{states}/c.0.0", f"{states}/commits/1.json", "models/b/zarr.json"):
        bucket.delete(key)
    with pytest.raises(StoreError):
        open_population(bucket.url)
    run(bucket.url, resume=True)
    assert bucket.files() == files
    bucket.put(f"{states}/c.2.0", bytes(len(files[f"{states}/c.2.0"])))
    bucket.put(f"{states}/c.99.0", b"stray")
    bucket.put(f"{states}/commits/0.json", b"")
    bucket.put("inputs/offsets/c.0", b"")
    bucket.delete("zarr.json")
    run(bucket.url, repair=True)
    assert bucket.files() == files
    run(bucket.url, overwrite=True)
    assert bucket.files() == files


@pytest.mark.slow
def test_a_capture_to_a_bucket_that_is_killed(captures: Any, bucket: Bucket, endpoint: str) -> None:
    environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
    options = {"environment": environment, "models": 1, "equal": True}
    whole = Bucket(endpoint, f"{bucket.folder}-whole")
    assert not captures.run(whole.url, **options)
    running = captures.begin(bucket.url, pause=0.7, **options)
    while not any("states" in key and "/commits/" in key for key in bucket.files()):
        time.sleep(0.01)
    assert captures.run(bucket.url, resume=True, **options).startswith("StoreLocked")
    assert running.kill()
    records = {key: data for key, data in bucket.files().items() if "/commits/" in key}
    assert not captures.run(bucket.url, resume=True, **options)
    assert bucket.files() == whole.files()
    assert records.items() < bucket.files().items()


def test_the_server_decides_who_is_first(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where all of several writers saw that there was nothing yet."""

    async def nothing(self: Any, key: str) -> bool:
        return False

    monkeypatch.setattr(FsspecStore, "exists", nothing)
    places = [locate(bucket.url, create=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda place: place.create("leases/x.json", b"x"), places))
    assert sorted(created) == [False, False, False, True]


def test_a_lease_on_a_bucket(bucket: Bucket) -> None:
    first = Lease(locate(bucket.url, create=True), Share())
    with pytest.raises(StoreLocked):
        Lease(locate(bucket.url, create=True), Share(0, 2))
    first.check()
    first.release()
    second = Lease(locate(bucket.url, create=True), Share(0, 2))
    second.release()
    assert locate(bucket.url, create=True).children("") == []


def test_what_others_write_is_seen_at_once(bucket: Bucket) -> None:
    """fsspec keeps what it listed, unless it is told to forget."""
    place = locate(bucket.url, create=True)
    bucket.put("folder/a", b"1")
    assert place.children("folder") == ["a"]
    bucket.put("folder/b", b"12")
    assert place.children("folder") == ["a", "b"]
    assert list(place.sizes(["folder/a", "folder/b", "folder/c"])) == [1, 2, None]
    bucket.put("folder/a", b"123")
    bucket.delete("folder/b")
    assert list(place.sizes(["folder/a", "folder/b", "folder/c"])) == [3, None, None]
    assert place.create("folder/b", b"x")
    assert not place.create("folder/a", b"x")


def test_what_is_read_is_bounded(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate(bucket.url, create=False)
    bucket.put("empty", b"")
    bucket.put("large", b"x" * 1000)
    empty = place.get("empty")
    assert empty is not None
    assert empty.size == 0
    assert place.get("nothing") is None
    assert place.get("large", limit=1000) is not None
    loaded: list[int] = []
    real = FsspecStore.get

    async def watched(*arguments: Any) -> Any:
        buffer = await real(*arguments)
        loaded.append(len(buffer or b""))
        return buffer

    monkeypatch.setattr(FsspecStore, "get", watched)
    with pytest.raises(CorruptBlock, match="at most 10 bytes"):
        place.get("large", limit=10)
    assert loaded == [11]


def test_what_is_not_there(bucket: Bucket) -> None:
    with pytest.raises(StoreNotFound, match=r"no zarr\.json"):
        open_population(bucket.url)
    with pytest.raises(StoreNotFound, match=r"no zarr\.json"):
        open_population("s3://no-such-bucket/p")
    with pytest.raises(StoreError, match=r"NoSuchBucket|bucket does not exist"):
        run("s3://no-such-bucket/p")


def test_a_server_that_does_not_answer(bucket: Bucket) -> None:
    options = {
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 2},
    }
    store = FsspecStore.from_url(bucket.url, storage_options=options)
    for function in (open_population, run):
        with pytest.raises(StoreError, match=r"(?s)Cannot .*127.0.0.1:9.*resume=True") as caught:
            function(store)
        assert caught.value.__cause__ is not None
