"""Storage that fails at any of its operations: a clean error, nothing lost, and the same bytes."""

from __future__ import annotations

import errno
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zarr.storage import MemoryStore, WrapperStore

from dynamo_plugin.errors import StoreError
from dynamo_plugin.recording import capture
from dynamo_plugin.store import Population, open_population, verify_population

Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 100)
    monkeypatch.setattr("dynamo_plugin.store._lease._SETTLING", 0.0)


def run(store: Any, **options: Any) -> Population:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {f"m{n}": nn.GRU(2, 3, batch_first=True) for n in range(2)}
    inputs = torch.linspace(-1, 1, 24).reshape(4, 3, 2)
    return capture(models, inputs, store, progress=False, batch_size=2, **options)


class Failing(WrapperStore[MemoryStore]):
    """A store that counts its operations and fails at some of them."""

    def __init__(self, store: MemoryStore, fails: Callable[[int], bool] = lambda k: False) -> None:
        super().__init__(store)
        self.fails = fails
        self.operations = itertools.count()
        self.failed = 0

    def count(self) -> None:
        if self.fails(next(self.operations)):
            self.failed += 1
            raise OSError(errno.EIO, "the cable was pulled")

    async def get(self, *arguments: Any, **options: Any) -> Any:
        self.count()
        return await super().get(*arguments, **options)

    async def set(self, *arguments: Any, **options: Any) -> None:
        self.count()
        await super().set(*arguments, **options)

    async def exists(self, key: str) -> bool:
        self.count()
        return await super().exists(key)

    async def delete(self, key: str) -> None:
        self.count()
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        self.count()
        await super().delete_dir(prefix)

    async def getsize(self, key: str) -> int:
        self.count()
        return await super().getsize(key)

    async def list_dir(self, prefix: str) -> Any:
        self.count()
        async for name in super().list_dir(prefix):
            yield name


def held(store: MemoryStore) -> dict[str, bytes]:
    return {
        key: buffer.to_bytes()
        for key, buffer in store._store_dict.items()
        if not key.startswith("leases/")
    }


def attempt(store: Any) -> StoreError | None:
    try:
        run(store)
    except StoreError as error:
        return error
    return None


def complete(store: Path) -> bool:
    try:
        open_population(store)
    except StoreError:
        return False
    return True


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@pytest.mark.parametrize("lasting", [False, True])
def test_a_store_that_fails_at_any_operation(lasting: bool) -> None:
    whole = MemoryStore()
    healthy = Failing(whole)
    run(healthy)
    total = next(healthy.operations)
    assert total > 50
    for failing in range(0, total, 2 if lasting else 1):
        memory = MemoryStore()
        store = Failing(memory, partial(operator.le if lasting else operator.eq, failing))
        error = attempt(store)
        if error is None:  # only the lease was not taken back
            assert store.failed
            assert verify_population(memory).ok
        else:
            assert "the cable was pulled" in str(error)
            assert any(isinstance(cause, OSError) for cause in causes(error.__cause__))
        before = held(memory)
        run(memory, resume=True)
        after = held(memory)
        assert after == held(whole), f"after a failure of operation {failing}"
        kept = {key: data for key, data in before.items() if "/commits/" in key}
        assert kept.items() <= after.items()


class FailingSystem:
    """Stands for `os`, and fails at the n-th of some calls."""

    def __init__(self, names: set[str], fails: Callable[[int], bool], code: int) -> None:
        self.names = names
        self.fails = fails
        self.code = code
        self.calls = itertools.count()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.names:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            if self.fails(next(self.calls)):
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


def replace_system(patch: pytest.MonkeyPatch, system: FailingSystem) -> None:
    for module in ("_local", "_file_io"):
        patch.setattr(f"dynamo_plugin.store.{module}.os", system)


@contextmanager
def failing(names: set[str], fails: Callable[[int], bool], code: int) -> Iterator[FailingSystem]:
    with pytest.MonkeyPatch.context() as patch:
        system = FailingSystem(names, fails, code)
        replace_system(patch, system)
        yield system


CALLS = {
    "open": errno.EIO,
    "fsync": errno.EIO,
    "writev": errno.ENOSPC,
    "replace": errno.ENOSPC,
    "link": errno.EIO,
    "mkdir": errno.ENOSPC,
    "readv": errno.EIO,
}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, content: Content) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamo_plugin.store._blocking.BLOCK_BYTES", 100)
        store = tmp_path_factory.mktemp("whole") / "p"
        run(store)
    return content(store)


def fail_and_resume(
    store: Path, whole: dict[str, bytes], content: Content, name: str, number: int
) -> bool:
    """Capture while the n-th of some calls fails; return whether there were as many."""
    code = CALLS[name]
    with failing({name}, lambda k: k == number, code) as system:
        error = attempt(store)
        reached = next(system.calls) > number
    if error is not None:
        assert "Cannot" in str(error)
        assert any(getattr(each, "errno", None) == code for each in causes(error.__cause__))
        assert not complete(store) or content(store) == whole
    if reached:
        run(store, resume=True)
        assert content(store) == whole, f"after a failure of {name} number {number}"
        assert not [path for path in store.rglob("*.partial") if path.is_file()]
    return reached


@pytest.mark.parametrize("name", CALLS)
def test_a_disk_that_fails(
    name: str, on_disk: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    """At the first calls, and at some of the rest."""
    for number in itertools.chain(range(3), itertools.count(3, 23)):
        if not fail_and_resume(tmp_path / str(number), on_disk, content, name, number):
            break
    assert number > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_disk_that_fails_at_any_call(
    name: str, on_disk: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    number = 0
    while fail_and_resume(tmp_path / str(number), on_disk, content, name, number):
        number += 1
    assert number > 0


def test_a_disk_that_stays_full(
    on_disk: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    with (
        failing({"writev"}, lambda k: k > 20, errno.ENOSPC),
        pytest.raises(StoreError, match=r"No space left.*make room .* resume=True"),
    ):
        run(tmp_path)
    with (
        failing({"writev"}, lambda k: True, errno.ENOSPC),
        pytest.raises(StoreError, match="No space left"),
    ):
        run(tmp_path, resume=True)
    run(tmp_path, resume=True)
    assert content(tmp_path) == on_disk


def test_writes_in_small_portions(
    on_disk: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    """The system may take less than it is given, or know no calls for several pieces."""

    class Portions(FailingSystem):
        def writev(self, descriptor: int, pieces: list[memoryview]) -> int:
            return os.write(descriptor, pieces[0][:7])

        def readv(self, descriptor: int, targets: list[memoryview]) -> int:
            return os.readv(descriptor, [targets[0][:11]])

    class NoPieces(FailingSystem):
        def __getattr__(self, name: str) -> Any:
            if name in ("readv", "writev"):
                raise AttributeError(name)
            return super().__getattr__(name)

    for kind in (Portions, NoPieces):
        with pytest.MonkeyPatch.context() as patch:
            replace_system(patch, kind(set(), lambda k: False, 0))
            run(tmp_path / kind.__name__)
            assert verify_population(tmp_path / kind.__name__).ok
        assert content(tmp_path / kind.__name__) == on_disk


def test_a_file_system_without_links(
    on_disk: dict[str, bytes], content: Content, tmp_path: Path
) -> None:
    with failing({"link"}, lambda k: True, errno.EPERM):
        run(tmp_path / "p")
        run(tmp_path / "p", resume=True)
    assert content(tmp_path / "p") == on_disk


def test_a_limit_on_the_size_of_files(captures: Any, content: Content, tmp_path: Path) -> None:
    """The signal that the limit sends does not end Python; the error says what is the matter."""
    store = tmp_path / "population.zarr"
    assert not captures.run(tmp_path / "whole", outputs=1000)
    error = captures.run(store, outputs=1000, file_size=3999)
    assert error.startswith("StoreError: model 'net 2': Cannot write models/net_2~")
    assert "File too large" in error
    kept = {key: data for key, data in content(store).items() if "/commits/" in key}
    assert any(key.startswith("models/") for key in kept)
    assert not captures.run(store, outputs=1000, resume=True)
    assert kept.items() <= content(store).items()
    assert content(store) == content(tmp_path / "whole")
