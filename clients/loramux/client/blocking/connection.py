"""Makes the calls of one service and blocks until they are answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from loramux.client.calls import AnyCall, Item, PageCall, Steps, Value
from loramux.client.channels import channel_options
from loramux.client.deadlines import Deadlines
from loramux.client.errors import LoramuxError, error_from_rpc


class Connection:
    """A lazy channel to one service. It connects with the first call."""

    def __init__(self, address: str, deadlines: Deadlines) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=channel_options())
        self._deadlines = deadlines

    def run(self, call: AnyCall[Value]) -> Value:
        """Makes a call. Raises LoramuxError."""
        invoke: grpc.UnaryUnaryMultiCallable[Any, Any] = self.channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        try:
            response = invoke(call.request, timeout=self._deadlines.of(call))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from None
        return call.decode(response)

    def run_steps(self, steps: Steps[Value]) -> Value:
        """Makes the calls that a generator asks for, one after another. Raises what it does not catch."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = self.run(call)
                except LoramuxError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: Value = end.value
            return result

    def run_pages(self, page_call: PageCall[Item]) -> tuple[Item, ...]:
        """Makes calls until the last page."""
        return tuple(self._items(page_call))

    def _items(self, page_call: PageCall[Item]) -> Iterator[Item]:
        page = self.run(page_call(""))
        yield from page.items
        while page.next_token:
            page = self.run(page_call(page.next_token))
            yield from page.items

    def close(self) -> None:
        """Cancels what runs and closes the channel."""
        self.channel.close()
