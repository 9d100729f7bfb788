"""Renders chat templates in a process of its own; started by chat_template.py, run as a script.

Imports nothing of this project, so that it starts fast and sees nothing. The environment is that of transformers'
`apply_chat_template` (utils/chat_template_utils.py, transformers 5): same sandbox, extensions, filters and globals.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_LIMIT = 1 << 30  # bytes of address space; the interpreter and jinja2 take about 50 MiB of it


class Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateDict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """`namespace` that takes no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no underscored attribute such as {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def compile_template(source: str) -> jinja2.Template:
    """Compile in transformers' environment; raises jinja2.TemplateSyntaxError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = TemplateDict()
    environment.globals["namespace"] = TemplateNamespace
    return environment.from_string(source)


def render(template: jinja2.Template, variables: Mapping[str, Any], max_chars: int) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": ...}` with a sentence."""
    try:
        text = template.render(**variables)
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error.message) if error.message else type(error).__name__}
    except RecursionError:
        return {"error": "the template recurses without end"}
    except MemoryError:
        return {"error": "the template needs too much memory"}
    except Exception as error:
        # A template can raise whatever Python can: a TypeError of `1 + "a"`, an OverflowError of a filter's argument.
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    if len(text) > max_chars:
        return {"error": f"the rendered conversation has {len(text)} characters, more than the {max_chars} allowed"}
    return {"text": text}


def _limit_memory() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MEMORY_LIMIT)
    # macOS has the limit in name only and may refuse to set it: the time limit is what is left there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_time(seconds: float) -> None:
    """End the process, whatever it is in the middle of, when it has computed for so long from now; 0: never.

    What the processor did for others meanwhile does not count, so that a busy machine stops no innocent template.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main(file_descriptor: int, max_chars: int, time_limit_s: float) -> None:
    """Take the template, then render one conversation after another until the other side hangs up."""
    _limit_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process; whoever started it may have ignored it
    with Connection(file_descriptor) as connection:
        try:
            connection.send_bytes(b"ready")
            source = connection.recv_bytes().decode("utf-8", "surrogatepass")
            _limit_time(time_limit_s)
            try:
                template, broken = compile_template(source), None
            except (jinja2.exceptions.TemplateError, RecursionError, MemoryError) as error:
                template, broken = None, {"error": f"the template is broken: {error}"}
            while True:
                _limit_time(0)
                request = connection.recv_bytes()
                _limit_time(time_limit_s)
                answer = broken if template is None else render(template, json.loads(request), max_chars)
                connection.send_bytes(json.dumps(answer).encode())
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
