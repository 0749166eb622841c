"""What type checkers know of a task's methods; nothing here runs.

Celery's own types (celery-types) lose the parameters in `apply_async` and `s`, and know no `lane`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Concatenate, Literal, Protocol, TypedDict, Unpack, overload
from uuid import UUID

import celery
import kombu
from celery.canvas import Signature
from celery.exceptions import Retry
from celery.result import AsyncResult
from typing_extensions import ParamSpec, TypeVar

from .config import Lanes
from .redis.connect import Server
from .remote import Control
from .settings import Log
from .task import Task

# With defaults, so that `Task` alone may be written: a task of any parameters and result.
P = ParamSpec("P", default=...)
R_co = TypeVar("R_co", covariant=True, default=Any)
SelfT = TypeVar("SelfT", bound=Task)

Rest = ParamSpec("Rest")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
D_contra = TypeVar("D_contra", contravariant=True)
_Callbacks = Signature[Any] | list[Signature[Any]] | None

class TaskOptions(TypedDict, total=False):
    """What `app.task` and `shared_task` take; any other name is an error."""

    lane: str
    queue: str  # of a lane; `lane` says the same
    key: str | Callable[..., object] | None  # an argument's name, or a function of the arguments
    name: str
    # Runs and retries. The time limits of a task are its lane's.
    autoretry_for: Sequence[type[BaseException]]
    dont_autoretry_for: Sequence[type[BaseException]]
    max_retries: int | None
    default_retry_delay: float  # seconds
    retry_kwargs: dict[str, Any]
    retry_backoff: bool | int
    retry_backoff_max: int  # seconds
    retry_jitter: bool
    rate_limit: str | None
    throws: tuple[type[BaseException], ...]
    time_limit: float | None  # seconds
    soft_time_limit: float | None  # seconds
    acks_late: bool
    acks_on_failure_or_timeout: bool
    reject_on_worker_lost: bool
    # Messages and results.
    compression: str | None
    delivery_mode: int
    expires: float | datetime | None
    ignore_result: bool
    priority: int | None
    resultrepr_maxsize: int
    send_events: bool
    serializer: str
    store_eager_result: bool
    store_errors_even_if_ignored: bool
    track_started: bool
    trail: bool
    typing: bool
    # Handlers, where no `base` has them.
    after_return: Callable[..., Any]
    before_start: Callable[..., Any]
    on_failure: Callable[..., Any]
    on_retry: Callable[..., Any]
    on_success: Callable[..., Any]
    # How the task is made of the function.
    abstract: bool
    autoregister: bool
    lazy: bool
    shared: bool
    pydantic: bool
    pydantic_context: dict[str, Any]
    pydantic_dump_kwargs: dict[str, Any]
    pydantic_strict: bool

class RetryOptions(TypedDict, total=False):
    """What `retry` hands on to the next run."""

    lane: str | None
    key: str | int | UUID | None
    queue: str | kombu.Queue | None
    add_to_parent: bool
    compression: str | None
    connection: kombu.Connection | None
    delivery_mode: int
    expires: float | datetime | None
    headers: dict[str, Any] | None
    ignore_result: bool
    link: _Callbacks
    link_error: _Callbacks
    priority: int | None
    producer: kombu.Producer | None
    retry: bool
    retry_policy: Mapping[str, Any] | None
    root_id: str | None
    parent_id: str | None
    reply_to: str | None
    serializer: str | None
    shadow: str | None
    soft_time_limit: float | None  # seconds
    stamped_headers: list[str] | None
    task_id: str | None
    time_limit: float | None  # seconds

class SendOptions(RetryOptions, total=False):
    """What `apply_async` takes beside the task's arguments; any other name is an error."""

    countdown: float | None  # seconds
    eta: datetime | None
    unique: bool | str | int | UUID | None  # True: by the task's arguments
    unique_for: float | timedelta | str | None  # seconds, or such as "1h"
    unique_until: Literal["start", "done"] | None
    replace: bool

class ManyOptions(TypedDict, total=False):
    """What `send_many` takes beside the arguments."""

    lane: str | None
    key: str | int | UUID | None
    countdown: float | None  # seconds
    expires: float | None  # seconds

# What `run` may be called with: no, one, two ... arguments by position, where those that have a
# default may be left out. A single protocol of a TypeVarTuple would make them obligatory in mypy.
class Takes0(Protocol):
    def run(self) -> object: ...

class Takes1(Protocol[A_contra]):
    def run(self, a: A_contra, /) -> object: ...

class Takes2(Protocol[A_contra, B_contra]):
    def run(self, a: A_contra, b: B_contra, /) -> object: ...

class Takes3(Protocol[A_contra, B_contra, C_contra]):
    def run(self, a: A_contra, b: B_contra, c: C_contra, /) -> object: ...

class Takes4(Protocol[A_contra, B_contra, C_contra, D_contra]):
    def run(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, /) -> object: ...

class TakesAnyNumber(Protocol[A_contra]):
    # Five, or mypy takes a function of one argument for one of any number.
    def run(
        self, a: A_contra, b: A_contra, c: A_contra, d: A_contra, e: A_contra, /, *more: A_contra
    ) -> object: ...

FiveOrMore = tuple[Any, Any, Any, Any, Any, *tuple[Any, ...]]

class TypedTask(celery.Task[P, R_co]):
    """Celery's task, whose methods carry the parameters `P` and the result `R_co` of its function.

    A tuple of arguments is checked up to four of them; `s`, `si` and `delay` check any number.
    """

    @overload  # type: ignore[override]  # no arguments or options but those that there are
    def apply_async(
        self: Takes0, args: tuple[()] | None = None, **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: Takes1[A], args: tuple[A], **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: Takes2[A, B], args: tuple[A, B], **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: Takes3[A, B, C], args: tuple[A, B, C], **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: Takes4[A, B, C, D], args: tuple[A, B, C, D], **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: TakesAnyNumber[A], args: tuple[A, ...], **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self: TakesFive[Rest, R_co], args: FiveOrMore, **options: Unpack[SendOptions]
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(
        self,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[R_co]: ...
    @overload
    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        args: tuple[Any, ...] | None = None,
        *,
        kwargs: Mapping[str, Any] | None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[R_co]: ...

    # With all arguments, or without the first: in a chain, that is the result before.
    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R_co]: ...
    @overload
    def s(
        self: TypedTask[Concatenate[Any, Rest], R_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Signature[R_co]: ...
    def retry(  # type: ignore[override]  # `lane`, and no options but those that there are
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Unpack[RetryOptions],
    ) -> Retry: ...

    # There when Django is; see docs/django.md.
    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def apply_async_on_commit(
        self,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> None: ...

TakesFive = TypedTask[Concatenate[Any, Any, Any, Any, Any, Rest], R_co]

class Define(Protocol):
    """A decorator that makes a task of a function and keeps its parameters and its result.

    `bind=True` takes `self` away. A `base` says what `self` is; who calls sees a `Task`.
    """

    @overload
    def __call__(self, function: Callable[P, R_co], /) -> Task[P, R_co]: ...
    @overload
    def __call__(
        self,
        *,
        bind: Literal[False] = False,
        base: type[Task[..., Any]] | None = None,
        **options: Unpack[TaskOptions],
    ) -> Callable[[Callable[P, R_co]], Task[P, R_co]]: ...
    @overload
    def __call__(
        self, *, bind: Literal[True], base: None = None, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[Task[..., Any], P], R_co]], Task[P, R_co]]: ...
    @overload
    def __call__(
        self, *, bind: Literal[True], base: type[SelfT], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[SelfT, P], R_co]], Task[P, R_co]]: ...

class App(celery.Celery):
    """A Celery app with lanes."""

    lanes: Lanes
    server: Server
    results: Server | None  # None: no results are kept
    lease_options: dict[str, Any]  # of a worker
    worker_limits: tuple[float | None, float | None]  # seconds, soft first; of a worker
    worker_zone: Any  # of a worker, for times that name none; False: not known yet
    worker_log: Log  # what a worker says, and how
    task: Define  # type: ignore[assignment]  # an attribute; Celery's is a method
    @property
    def control(self) -> Control: ...

shared_task: Define
