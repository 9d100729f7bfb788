"""`loramux model`, `loramux tokenize` and `loramux detokenize`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from loramux.cli.session import AddressOption, JsonOption, open_session
from loramux.cli.tables import model_table
from loramux.client import Tokenization
from loramux.client.prompts import user_message


def model(context: typer.Context, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Describe the model that is served."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.model(), model_table)


def tokenize(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to tokenize.")],
    chat: Annotated[bool, typer.Option("--chat/--raw", help="As a chat message, or as plain text.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn text into token ids."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        session.emit(client.tokenize(user_message(text) if chat else text), _tokens)


def detokenize(
    context: typer.Context,
    token_ids: Annotated[list[int], typer.Argument(help="Token ids.")],
    skip_special_tokens: Annotated[bool, typer.Option("--skip-special-tokens", help="Leave those out.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn token ids into text."""
    session = open_session(context, as_json, address)
    with session.client() as client:
        text = client.detokenize(token_ids, skip_special_tokens=skip_special_tokens)
    session.emit({"text": text}, lambda _: Text(text))


def _tokens(tokens: Tokenization) -> Table:
    table = Table.grid()
    if tokens.rendered is not None:
        table.add_row(Text(tokens.rendered, style="dim"))
    table.add_row(Text(" ".join(map(str, tokens.token_ids))))
    return table
