from collections.abc import Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Callable, Literal, Protocol, TypedDict, TypeVar, final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.util.types import Attributes

from .opentelemetry import Event, InstrumentationScope, TracerProvider

_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "Span",
    "SpanContext",
    "_OpenTelemetryBlock",
    "_OpenTelemetryNonRecordingSpan",
    "_OpenTelemetryProvider",
    "_OpenTelemetrySpan",
    "_OpenTelemetryTracer",
    "__version__",
    "_after_fork_in_child",
    "_after_fork_in_parent",
    "_before_fork",
    "_connect_opentelemetry",
    "_describe_process",
    "_process_description",
    "_record_model",
    "_record_step",
    "_request_span",
    "_step_context",
    "action",
    "extract",
    "flush",
    "init",
    "inject",
    "shutdown",
    "span",
    "stats",
]

__version__: str

class _Carrier(Protocol):
    """Anything with a dict's `get`, such as Starlette's `Headers`."""

    def get(self, key: str, /) -> str | None: ...

class _Stats(TypedDict):
    """The books of this process.

    At any time ``created == exported + in_flight + logged + sum(dropped.values())``.
    """

    created: int
    """Spans made."""
    exported: int
    """Spans that a Collector has taken."""
    in_flight: int
    """Spans waiting or on the wire."""
    logged: int
    """Spans that are in the legacy log and that no Collector has taken."""
    dropped: dict[str, int]
    """Spans lost, by reason."""
    events: int
    """Actions and spans taken from the queue."""
    events_lost: int
    """Actions lost because the queue was full, or because they came after `shutdown()`."""
    events_loose: int
    """Actions that became part of no span."""
    unsampled: int
    """Spans not made because their trace is not sampled."""
    contradictory: int
    """Phases not made because they would end before they start."""
    open_requests: int
    """Requests that may still get actions."""
    last_error: str | None
    """Why the last export failed, until one succeeds."""

@final
class SpanContext:
    """The identity of one span, as W3C ``traceparent`` carries it."""

    @property
    def trace_id(self) -> str:
        """32 lower-case hexadecimal digits."""
    @property
    def span_id(self) -> str:
        """16 lower-case hexadecimal digits."""
    @property
    def sampled(self) -> bool:
        """Whether the trace is recorded."""
    @property
    def traceparent(self) -> str:
        """The header's value."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def span(
    name: str,
    request_id: str | None = None,
    attributes: Mapping[str, object] | None = None,
    *,
    parent: SpanContext | None = None,
) -> Span:
    """A span around a block (``with`` or ``async with``), or, as a decorator,
    around each call of a function, coroutine function or generator.

    name: the span's name.
    request_id: hangs it under that request's SERVER span of this process; within
        another open span it hangs under that one.
    attributes: text, integers, floats, truth values, and lists or tuples of one of
        these; anything else becomes text, and None is left out. They are read when
        the block ends.
    parent: a context to hang it under instead, such as `extract` returns.

    An exception that leaves the block marks the span as failed and goes on. A
    decorated generator is inside its span only while it runs, not while its
    reader does.
    """

@final
class Span:
    """What `span` returns."""

    @property
    def context(self) -> SpanContext | None:
        """Its own context, while it is open."""
    def set_attribute(self, key: str, value: object) -> None:
        """Sets one attribute; the last value of a key counts."""
    def __enter__(self) -> Span: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Literal[False]: ...
    async def __aenter__(self) -> Span: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __call__(self, function: _F) -> _F: ...
    def _leave(self) -> None: ...
    def _return(self) -> None: ...

def init(
    *,
    service_name: str | None = None,
    role: str | None = None,
    endpoint: str | None = None,
    traces_endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
    compression: str | None = None,
    timeout: float | None = None,
    insecure: bool | None = None,
    certificate: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    exporter: str | None = None,
    metrics_exporter: str | None = None,
    metric_export_interval: float | None = None,
    sampler: str | None = None,
    sampler_arg: float | None = None,
    propagators: str | None = None,
    resource_attributes: Mapping[str, str] | None = None,
    attribute_count_limit: int | None = None,
    attribute_value_length_limit: int | None = None,
    event_count_limit: int | None = None,
    link_count_limit: int | None = None,
    event_attribute_count_limit: int | None = None,
    link_attribute_count_limit: int | None = None,
    schedule_delay: float | None = None,
    export_timeout: float | None = None,
    max_export_batch_size: int | None = None,
    max_queue_size: int | None = None,
    memory_limit_mib: int | None = None,
    legacy_log: str | None = None,
    legacy_log_directory: str | None = None,
    log_level: str | None = None,
    disabled: bool | None = None,
) -> None:
    """Sets this process up and starts its exporter thread.

    Optional: without it the first action or span does the same from the
    environment alone. What is not given here comes from the environment, whose
    variables the README's table lists beside these arguments. ``timeout``,
    ``metric_export_interval``, ``schedule_delay`` and ``export_timeout`` are seconds; the certificates and
    the key are paths of PEM files, which are read now. A second call shuts the
    first set-up down.

    Raises TypeError for an unknown argument, ValueError for a wrong value, a file
    that cannot be used included.
    """

def action(
    name: str,
    request_id: str,
    attributes: Mapping[str, object] | None = None,
    occurrence: int = 0,
    timestamp: int | None = None,
) -> None:
    """Records that ``name`` happened to a request, now or at ``timestamp``.

    name: an action of the vocabulary; any other becomes an event on the
        request's SERVER span.
    request_id: in any form that vLLM makes of it.
    occurrence: of a phase that a request goes through more than once, which time
        this is, from 0 to 65535.
    timestamp: nanoseconds since 1970, as `time.time_ns` has them.

    Raises for an ``occurrence`` or a ``timestamp`` that is no such number (TypeError,
    OverflowError), else never; never waits.
    """

def extract(
    carrier: Mapping[str, str] | _Carrier | list[tuple[bytes, bytes]],
    request_id: str | None = None,
) -> SpanContext | None:
    """Reads the trace context that came with a call; None if it has no valid one.

    ``carrier`` is a mapping, anything with ``get(name)``, or an ASGI scope's list of
    ``headers`` (in Starlette and FastAPI ``request.headers.raw``), which is the cheapest.

    ``OTEL_PROPAGATORS`` says in which formats it may be.

    With ``request_id`` the context, and what `inject` wrote for that request in
    another process of this node, is bound to the request: all its phases here
    join that trace. To be called before the request's first action.
    """

def inject(carrier: MutableMapping[str, str], request_id: str | None = None) -> None:
    """Writes a trace context for the receiver of a call.

    Without ``request_id``: the innermost open span as ``traceparent``, or as
    ``OTEL_PROPAGATORS`` says, for any service. With it: what another process *of
    this node* needs to go on with the request (context, ``tracestate`` and
    ``baggage`` as they came, ``omnitrace-request-id``, ``omnitrace-starts``), to be
    given to `extract` there.

    Raises what ``carrier[key] = value`` raises.
    """

def flush(timeout: float = 5.0) -> bool:
    """Waits until everything recorded so far is exported or in the legacy log.

    A Collector that does not take it now is not waited for. False: ``timeout``
    seconds were not enough, or something had to be dropped.
    """

def shutdown(timeout: float = 2.0) -> None:
    """Delivers what there is within ``timeout`` seconds, the rest to the legacy
    log, and stops recording. Runs at exit by itself."""

def stats() -> _Stats:
    """The books of this process, as of the exporter thread's last round."""

# ---- omnitrace.vllm

def _step_context(executed: int) -> tuple[str, SpanContext] | None:
    """Id and context of the engine step whose model begins to run at ``executed``
    (nanoseconds since 1970); None where nothing of it is recorded."""

def _record_step(
    context: SpanContext,
    times: Sequence[int],
    requests: Sequence[tuple[str, str, int]],
    attributes: Mapping[str, object],
) -> None:
    """Records a step.

    times: its start, its model's start and end, and its end, in nanoseconds since 1970.
    requests: ids, roles and scheduled tokens.
    """

def _record_model(
    draft: bool, step: tuple[str, str], start: int, end: int, rank: int | None
) -> None:
    """Records what the main model, or the speculative proposer, did in a step.

    step: its id and its ``traceparent``.

    Raises ValueError if these are none.
    """

def _request_span(request_id: str, role: str) -> SpanContext | None:
    """The SERVER span that a request has on this node in a role; None if disabled."""

def _before_fork() -> None: ...
def _after_fork_in_parent() -> None: ...
def _after_fork_in_child() -> None: ...

# ---- omnitrace.opentelemetry; to be imported only where opentelemetry-api is installed

@final
class _OpenTelemetryProvider:
    """What the tracers of one provider share."""

    def __new__(
        cls,
        front: TracerProvider,
        sampler: Any,
        ratio: float,
        limits: Sequence[int | None] | None,
        id_generator: Any,
    ) -> _OpenTelemetryProvider: ...
    def show_spans(self) -> None: ...
    def shut_down(self) -> None: ...
    def sampler_name(self) -> str | None: ...

@final
class _OpenTelemetryTracer(trace.Tracer):
    """Starts spans; its methods are those of ``opentelemetry.trace.Tracer``."""

    def __new__(
        cls,
        provider: _OpenTelemetryProvider,
        name: str,
        version: str,
        schema_url: str,
        attributes: Attributes,
    ) -> _OpenTelemetryTracer: ...
    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """The scope of its spans."""
    @property
    def resource(self) -> Any:
        """Its provider's."""
    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = ...,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """Starts a span under the current one, or under that of ``context``.

        start_time: nanoseconds since 1970.
        record_exception, set_status_on_exception: what an exception does that leaves
            a ``with`` block of the span.
        """
    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = ...,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> _OpenTelemetryBlock:
        """A block, or as a decorator each call of a function, with a span that is the
        current one."""

@final
class _OpenTelemetryBlock:
    """What ``start_as_current_span`` returns."""

    def __enter__(self) -> trace.Span: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Literal[False]: ...
    def __call__(self, function: _F) -> _F: ...
    def _again(self) -> _OpenTelemetryBlock: ...

@final
class _OpenTelemetrySpan(trace.Span):
    """A span that is recorded; its methods are those of ``opentelemetry.trace.Span``,
    its properties those of the SDK's ``ReadableSpan``, before and after its end."""

    def end(self, end_time: int | None = None) -> None: ...
    def get_span_context(self) -> trace.SpanContext: ...
    def set_attributes(self, attributes: Mapping[str, Any]) -> None: ...
    def set_attribute(self, key: str, value: Any) -> None: ...
    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None: ...
    def add_link(self, context: trace.SpanContext, attributes: Attributes = None) -> None: ...
    def update_name(self, name: str) -> None: ...
    def is_recording(self) -> bool: ...
    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None: ...
    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def context(self) -> trace.SpanContext: ...
    @property
    def parent(self) -> trace.SpanContext | None: ...
    @property
    def kind(self) -> SpanKind: ...
    @property
    def start_time(self) -> int:
        """Nanoseconds since 1970."""
    @property
    def end_time(self) -> int | None:
        """Nanoseconds since 1970; None while it is open."""
    @property
    def status(self) -> Status: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def events(self) -> tuple[Event, ...]: ...
    @property
    def links(self) -> tuple[Link, ...]: ...
    @property
    def dropped_attributes(self) -> int:
        """Attributes that a limit has kept out."""
    @property
    def dropped_events(self) -> int:
        """Events that a limit has kept out."""
    @property
    def dropped_links(self) -> int:
        """Links that a limit has kept out."""
    @property
    def resource(self) -> Any: ...
    @property
    def instrumentation_scope(self) -> InstrumentationScope: ...

@final
class _OpenTelemetryNonRecordingSpan(trace.NonRecordingSpan):
    """A span that is not recorded: nothing but its context."""

def _connect_opentelemetry(block_tracer: _OpenTelemetryTracer) -> None: ...
def _describe_process(attributes: Mapping[str, Any]) -> None: ...
def _process_description() -> Mapping[str, Any]: ...
