"""Labels for images from a running deployment: python examples/client.py mqtt://BROKER IMAGE..."""

import asyncio
import sys

from mdi_exit import Client


async def main(broker: str, *images: str) -> None:
    async with Client(broker) as client:
        async for answer in client.stream(images):
            print(f"{answer.name}  {answer.confidence:.2f}  exit {answer.exit}  {answer.latency_s:.3f} s")


asyncio.run(main(*sys.argv[1:]))
