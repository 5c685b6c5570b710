from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable

import pytest

from edgewise.core.errors import InputError
from edgewise.simulation.links.link import LinkSpec
from edgewise.simulation.links.link_control import LinkControl, main, read_specs


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 30.0))


@pytest.mark.live
def test_link_process_tells_its_ports_obeys_and_ends_with_its_owner() -> None:
    async def scene() -> None:
        spec = json.dumps([{"name": "a", "target": "127.0.0.1:1", "shape": {"bytes_per_s": 1000}}])
        pipe = asyncio.subprocess.PIPE
        command = ("-m", "edgewise.simulation.links.link_control", "--spec", spec, "--until-stdin-closes")
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        assert process.stdin is not None
        ports = json.loads(await process.stdout.readline())
        control = await LinkControl.connect(ports["control"])
        assert await control.add(LinkSpec(name="b", target="127.0.0.1:2")) > 0
        await control.set("a", bytes_per_s=5.0, outage="cut")
        assert set(await control.counters()) == {"a", "b"}
        with pytest.raises(InputError, match=r"there is no link 'c'\."):
            await control.set("c", delay_s=1)
        with pytest.raises(InputError, match="no operation 'jump'"):
            await control.call("jump")
        with pytest.raises(InputError, match="link 'b' exists"):
            await control.add(LinkSpec(name="b", target="127.0.0.1:2"))
        with pytest.raises(InputError, match="cannot be called so"):
            await control.call("counters", what=1)
        await control.close()
        process.stdin.close()
        assert await process.wait() == 0

    play(scene)


@pytest.mark.live
def test_link_process_ends_on_sigterm() -> None:
    async def scene() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgewise.simulation.links.link_control", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0

    play(scene)


def test_wrong_spec_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="a link spec is not usable"):
        read_specs([{"name": "a", "goal": "x"}])
    with pytest.raises(SystemExit) as caught:
        main(["--spec", "[{]"])
    assert caught.value.code == 2
    assert "--spec" in capsys.readouterr().err
