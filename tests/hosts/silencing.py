"""A TCP proxy, `silencing.py PORT TARGET_PORT`, whose connections go silent on SIGUSR1.

Those that are open then stay open, and pass nothing on any more; new ones work. So a firewall does
it that has forgotten them, or an address that has moved to another machine.
"""

import asyncio
import signal
import sys


class _Proxy:
    def __init__(self, target: int) -> None:
        self.target = target
        self.generation = 0

    def silence(self) -> None:
        self.generation += 1
        print("silenced", flush=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self.generation
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pass_on(reader, to_writer, generation),
            self._pass_on(to_reader, writer, generation),
        )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, generation: int
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if generation == self.generation:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if generation == self.generation:
            writer.close()


async def _main(port: int, target: int) -> None:
    proxy = _Proxy(target)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, proxy.silence)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", port) as server:
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
