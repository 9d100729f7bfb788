"""Changes of what is resident, for the blocking client."""

from __future__ import annotations

from types import TracebackType

import grpc

from loramux.client.adapter_events import AdapterUpdate, update_from_proto
from loramux.client.blocking.connection import Connection
from loramux.client.calls import WATCH_ADAPTERS
from loramux.client.errors import error_from_rpc
from loramux.inference.v1 import adapter_service_pb2


class AdapterWatch:
    """Iterates over a snapshot and then the changes, until it is closed or the service ends it.

    Its end is an error of the service: watch again with the `resume_token` of the last update that came.
    """

    def __init__(self, connection: Connection, resume_token: str | None) -> None:
        self._address = connection.address
        invoke: grpc.UnaryStreamMultiCallable[
            adapter_service_pb2.WatchAdaptersRequest, adapter_service_pb2.WatchAdaptersResponse
        ] = connection.channel.unary_stream(
            WATCH_ADAPTERS,
            request_serializer=adapter_service_pb2.WatchAdaptersRequest.SerializeToString,
            response_deserializer=adapter_service_pb2.WatchAdaptersResponse.FromString,
        )
        self._is_closed = False
        self._call = invoke(adapter_service_pb2.WatchAdaptersRequest(resume_token=resume_token))

    def receive(self) -> AdapterUpdate | None:
        """The next update; None at the end. Raises LoramuxError."""
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            if self._is_closed:
                return None
            raise error_from_rpc(error, self._address) from None
        return None if response is None else update_from_proto(response)

    def __iter__(self) -> AdapterWatch:
        return self

    def __next__(self) -> AdapterUpdate:
        update = self.receive()
        if update is None:
            raise StopIteration
        return update

    def close(self) -> None:
        """Ends the watch."""
        self._is_closed = True
        self._call.cancel()

    def __enter__(self) -> AdapterWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
