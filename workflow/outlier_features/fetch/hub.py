"""Calls to the Hugging Face hub: bounded in time, made again where it asks for that, their errors as one sentence."""

import fcntl
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token, is_offline_mode, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from outlier_features.errors import InputError
from outlier_features.stage_log import say

ANSWER_SECONDS = 10.0  # for the first answers, all in all
DOWNLOADS = 2  # at once, of all processes that share a cache
_REQUEST_SECONDS = 8.0  # for each step of a request
_LATER = (429, 500, 502, 503, 504)  # statuses after which a request is made again
_WAITS = (1, 2, 4, 8, 16, 32, 64)  # seconds before each further attempt, where the hub names none
_LONGEST_WAIT = 900  # that the hub may ask for; its limits are of 300 s
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

T = TypeVar("T")


@dataclass(frozen=True)
class Repo:
    """A repository on the hub, as a catalog entry names it."""

    kind: Literal["model", "data set"]
    name: str
    revision: str
    gated: bool = False  # the catalog says that the hub gives it only to those who have accepted its licence

    @property
    def page(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'data set' else ''}{self.name}"

    @property
    def is_pinned(self) -> bool:
        """Whether `revision` is a full commit, whose content never changes."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


class Unreachable(InputError):
    """The hub did not answer; a cache may still have what was asked for."""


class _Busy(RuntimeError):
    """The hub put a request off, again and again or for too long."""


@contextmanager
def download_slot() -> Iterator[None]:
    """Hold one of the places for downloads, and wait for one where all are taken by other processes of this machine.

    Snakemake keeps to the same number within a run; this holds for several runs, and for jobs that fetch weights again.
    """
    folder = Path(constants.HF_HUB_CACHE) / ".locks"
    with ExitStack() as stack:
        with suppress(OSError):  # a cache that is only read, or a file system without locks, limits nothing
            folder.mkdir(parents=True, exist_ok=True)
            places = [stack.enter_context((folder / f"download-{n}.lock").open("a")) for n in range(DOWNLOADS)]
            while not any(_locked(place) for place in places):
                time.sleep(0.2)
        yield


def _locked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def talking_to_hub(repo: Repo) -> Iterator[None]:
    """Run a body that calls the hub about `repo`; what fails there is raised as an `InputError`."""
    set_client_factory(_client)
    try:
        yield
    except (OSError, httpx2.HTTPError, ValueError, RuntimeError) as error:  # RuntimeError: the Xet transfer
        cause: Exception = error
        while isinstance(cause, LocalEntryNotFoundError) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__  # the hub library hides what happened behind "not in the cache"
        if _is_unreachable(cause):
            raise Unreachable(_sentence(repo, cause)) from error
        raise InputError(_sentence(repo, cause)) from error


def resolve(repo: Repo) -> tuple[str, str]:
    """The commit that `repo.revision` stands for, and the repository's full id (`gpt2` is `openai-community/gpt2`).

    Raises `InputError` where the repository or revision is missing or closed, `Unreachable` where the hub does not
    answer in time. A gated repository is not asked for without a token.
    """
    if repo.gated and not get_token():
        raise InputError(
            f"hub: {repo.kind} {repo.name!r} is gated, and there is no token: accept its licence on {repo.page}, then "
            f"{_LOG_IN}; or set `gated: false` where it is not"
        )
    api = HfApi()
    ask = api.model_info if repo.kind == "model" else api.dataset_info
    with talking_to_hub(repo):
        info = within(ANSWER_SECONDS, lambda: ask(repo.name, revision=repo.revision, timeout=_REQUEST_SECONDS))
    if not info.sha:
        raise InputError(f"hub: {constants.ENDPOINT} names no commit for {repo.kind} {repo.name!r}, expected a hub")
    return info.sha, info.id


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, or `TimeoutError`; what the hub asks to wait does not count.

    The time limit of a request holds for each of its steps and for each address of the host, and looking the name up
    has none; so the call runs in a thread that is left behind when its time is over.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    start = time.monotonic()
    threading.Thread(target=run, daemon=True).start()
    while not future.done() and (left := max(start, _Client.waits_until) + seconds - time.monotonic()) > 0:
        with suppress(TimeoutError):
            future.exception(left)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()


class _Client(httpx2.Client):
    """Makes a request again where the hub says that there are too many (429) or that it cannot answer (5xx).

    The hub library does so for some requests and not for others, such as those for a revision's commit (429, 5xx) and
    for a file's content (5xx). Here it is done for all, and what is given up the library does not try again.
    """

    waits_until: ClassVar[float] = 0.0

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        for wait in (*_WAITS, None):
            response = super().send(request, **options)
            if response.status_code not in _LATER:
                return response
            response.close()
            said = f"HTTP {response.status_code}"
            told = _told(response.headers)
            if wait is None:
                raise _Busy(f"{said}, {len(_WAITS) + 1} times")
            if told is not None and told > _LONGEST_WAIT:
                raise _Busy(f"{said}, with the request to wait {told:,.0f} s")
            seconds = wait if told is None else told
            say(f"{request.url.host} answers {said}: asked again in {seconds:.0f} s")
            _Client.waits_until = time.monotonic() + seconds
            time.sleep(seconds)
        raise AssertionError


def _told(headers: httpx2.Headers) -> float | None:
    """Seconds that the hub asks to wait: the rest of its limit's window, or `Retry-After` as seconds or as a date."""
    limit = parse_ratelimit_headers(headers)
    if limit and not limit.remaining:
        return limit.reset_in_seconds + 1  # whole seconds, of which the last may not be over
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time() + 1)
    return None


def _client() -> httpx2.Client:
    return _Client(follow_redirects=True, event_hooks={"request": [_prepare]}, timeout=_REQUEST_SECONDS)


def _prepare(request: httpx2.Request) -> None:
    if is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    limits = request.extensions.get("timeout", {})
    # The hub library lists files with no limit at all, and would wait forever.
    request.extensions["timeout"] = {
        step: _REQUEST_SECONDS if limits.get(step) is None else limits[step]
        for step in ("connect", "read", "write", "pool")
    }


def _is_unreachable(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.HTTPError | TimeoutError | ConnectionError | _Busy)


def _sentence(repo: Repo, error: Exception) -> str:
    what = f"{repo.kind} {repo.name!r}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, GatedRepoError):
        return (
            f"hub: access to {what} was refused (HTTP {status}), it is gated: accept its licence on {repo.page}, "
            f"then {_LOG_IN}"
        )
    if status == 403:
        return f"hub: access to {what} was refused (HTTP 403): {_LOG_IN} with a token that may read {repo.page}"
    if isinstance(error, RevisionNotFoundError):
        return f"revision: {repo.revision!r} was not found in {what}, expected a branch, tag or commit of {repo.page}"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return (
            f"hub: {what} was not found on {constants.ENDPOINT} (HTTP {status}): check its name, "
            f"or {_LOG_IN} if it is private"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"hub: {what} at revision {repo.revision!r} is not in the cache and HF_HUB_OFFLINE is set: unset it, "
            "or fill the cache"
        )
    if isinstance(error, HFValidationError):
        return f"hub: {repo.name!r} is no id of a {repo.kind}, expected one such as 'organization/name'"
    reason = f"HTTP {status}" if status else " ".join(str(error).split()) or type(error).__name__
    if _is_unreachable(error):
        return (
            f"hub: {what} at revision {repo.revision!r} could not be fetched from {constants.ENDPOINT} ({reason}): "
            "check the network, a proxy or HF_ENDPOINT"
        )
    return f"hub: {what} at revision {repo.revision!r} could not be fetched from {constants.ENDPOINT}: {reason}"
