"""Who passes when: many at once, nobody while it is closed, and none is forgotten."""

import asyncio

import pytest

from raydistill.serving.turnstile import Turnstile


def test_closing_waits_for_those_inside_and_holds_those_who_come():
    async def scene():
        turnstile, events = Turnstile(), []

        async def pass_through(name, done):
            async with turnstile.passing():
                events.append(f"{name} in")
                await done.wait()
            events.append(f"{name} out")

        done = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(pass_through(name, done[index])) for index, name in enumerate("ab")]
        await asyncio.sleep(0)
        closing = asyncio.create_task(turnstile.close())
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(pass_through("c", done[2])))
        done[0].set()
        await asyncio.sleep(0.01)
        assert events == ["a in", "b in", "a out"] and not closing.done() and not turnstile.is_open
        done[1].set()
        await closing
        await asyncio.sleep(0.01)
        assert events[3:] == ["b out"], "c waits"
        turnstile.open()
        done[2].set()
        await asyncio.gather(*tasks)
        assert events[4:] == ["c in", "c out"]

    asyncio.run(scene())


def test_a_closing_that_is_given_up_opens_again():
    async def scene():
        turnstile = Turnstile()
        async with turnstile.passing():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(turnstile.close(), 0.01)
            assert turnstile.is_open
            async with asyncio.timeout(1), turnstile.passing():
                pass

    asyncio.run(scene())


def test_one_who_gives_up_waiting_is_not_counted_as_inside():
    async def scene():
        turnstile = Turnstile()
        await turnstile.close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), turnstile.passing():
                pass
        turnstile.open()
        await asyncio.wait_for(turnstile.close(), 1)

    asyncio.run(scene())
