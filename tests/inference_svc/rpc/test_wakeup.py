"""Coroutines are woken from other threads, all with one signal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from inference_svc.rpc.wakeup import Bell, Wakeup


async def test_a_call_before_the_wait_is_not_lost_and_wakes_once() -> None:
    wakeup = Wakeup(Bell())
    wakeup.call()
    wakeup.call()
    await asyncio.wait_for(wakeup.wait(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wakeup.wait(), 0.01)


async def test_many_calls_from_a_thread_are_one_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    signals = 0
    really = loop.call_soon_threadsafe

    def counted(callback: Callable[[], None]) -> asyncio.Handle:
        nonlocal signals
        signals += 1
        return really(callback)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    bell = Bell()
    wakeups = [Wakeup(bell) for _ in range(50)]
    waiting = [asyncio.create_task(wakeup.wait()) for wakeup in wakeups]
    await asyncio.sleep(0)

    def call_all() -> None:
        for wakeup in wakeups:
            wakeup.call()

    thread = threading.Thread(target=call_all)
    thread.start()
    thread.join()  # the loop does not run meanwhile, as when the engine holds the interpreter
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert signals == 1


async def test_calls_from_many_threads_all_arrive() -> None:
    bell = Bell()
    wakeups = [Wakeup(bell) for _ in range(8)]
    counts = [0] * 8

    async def count(index: int) -> None:
        while counts[index] < 50:
            await wakeups[index].wait()
            counts[index] += 1
            heard[index].set()

    heard = [threading.Event() for _ in range(8)]

    def call(index: int) -> None:
        for _ in range(50):
            wakeups[index].call()
            assert heard[index].wait(30)
            heard[index].clear()

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(asyncio.gather(*map(count, range(8))), 60)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert counts == [50] * 8


def test_a_bell_whose_loop_is_closed_is_silent() -> None:
    async def make() -> Wakeup:
        return Wakeup(Bell())

    wakeup = asyncio.run(make())
    wakeup.call()
