"""Makes the calls of one service and awaits their answers."""

from __future__ import annotations

from typing import Any

import grpc

from loramux.client.calls import AnyCall, Item, PageCall, Steps, Value
from loramux.client.channels import channel_options
from loramux.client.deadlines import Deadlines
from loramux.client.errors import LoramuxError, error_from_rpc


class AsyncConnection:
    """A lazy channel to one service. It connects with the first call."""

    def __init__(self, address: str, deadlines: Deadlines) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=channel_options())
        self._deadlines = deadlines

    async def run(self, call: AnyCall[Value]) -> Value:
        """Makes a call. Raises LoramuxError."""
        invoke: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self.channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        try:
            response = await invoke(call.request, timeout=self._deadlines.of(call))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from None
        return call.decode(response)

    async def run_steps(self, steps: Steps[Value]) -> Value:
        """Makes the calls that a generator asks for, one after another. Raises what it does not catch."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = await self.run(call)
                except LoramuxError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: Value = end.value
            return result

    async def run_pages(self, page_call: PageCall[Item]) -> tuple[Item, ...]:
        """Makes calls until the last page."""
        page = await self.run(page_call(""))
        items = list(page.items)
        while page.next_token:
            page = await self.run(page_call(page.next_token))
            items.extend(page.items)
        return tuple(items)

    async def close(self) -> None:
        """Cancels what runs and closes the channel."""
        await self.channel.close()
