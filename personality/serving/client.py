"""Talking to a running vLLM over HTTP: what it serves, what it predicts, and switching it. Standard library only."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from personality.manifests.errors import PersonaError, UsageError

KEY_VARIABLE = "PERSONA_API_KEY"
_TIMEOUT = 60.0
_SHOWN = 400  # characters of an answer that an error repeats


class ServerError(PersonaError):
    """A server cannot be reached, or answers with an error.

    Attributes:
        status: of the HTTP answer; 0 when there was none.
        detail: what the server said.
        untouched: whether this is known to have left what is served as it was.
    """

    kind = "server"

    def __init__(
        self, message: str, hint: str = "", *, status: int = 0, detail: str = "", untouched: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.detail = detail
        self.untouched = untouched

    @property
    def lost(self) -> bool:
        """Whether there was no answer at all."""
        return not self.status


@dataclass(frozen=True)
class ServedModel:
    """What `/v1/models` tells.

    Attributes:
        name: by which requests ask for it.
        folder: the model folder that the server was started with.
        max_length: of prompt and reply together, tokens.
    """

    name: str
    folder: str
    max_length: int


@dataclass(frozen=True)
class Answer:
    """What a served model makes of a prompt of n tokens when it replies with m, each the most likely.

    Attributes:
        reply: token ids (m).
        log_probabilities: of every token of prompt and reply but the first (n − 1 + m), nats.
        greedy: the most likely token ids in the same places.
    """

    reply: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    greedy: tuple[int, ...]


class Client:
    """One server.

    Args:
        url: such as `http://127.0.0.1:8000`; a trailing `/v1` is left out.
        timeout: of one question, seconds.
        key: what the server was started with as `--api-key`; PERSONA_API_KEY unless told.

    Raises:
        UsageError: when the URL is none.
    """

    def __init__(self, url: str, *, timeout: float = _TIMEOUT, key: str | None = None) -> None:
        given = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(given)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"`{url}` is no URL: {error}", "give one like `http://127.0.0.1:8000`") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"`{url}` is no URL of a server", "give one like `http://127.0.0.1:8000`")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{parts.scheme}://{host}:{self._port}{self._path}"
        self._timeout = timeout
        self._key = os.environ.get(KEY_VARIABLE, "") if key is None else key

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send one request and read its answer.

        Args:
            method: such as `GET`.
            path: such as `/v1/models`.
            body: JSON data, or bytes as they are.
            query: what follows the `?`.
            timeout: seconds, in place of the client's.

        Returns:
            The answer's JSON data; None for an empty one.

        Raises:
            ServerError: when the server cannot be reached, breaks off, or answers with an error.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        content: bytes | None = None
        if isinstance(body, bytes):
            content, headers["Content-Type"] = body, "application/octet-stream"
        elif body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        target = f"{self._path}{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        status, answer = self._exchange(method, target, content, headers, timeout or self._timeout)
        if status >= 400:
            detail, hint = _detail(answer)
            if status == 401:
                hint = f"give the server's key: `export {KEY_VARIABLE}=…`"
            raise ServerError(f"{self.url}{path} answers {status}: {detail}", hint, status=status, detail=detail)
        if not answer.strip():
            return None
        try:
            return json.loads(answer)
        except ValueError:
            shown = answer[:_SHOWN].decode(errors="replace")
            raise ServerError(
                f"{self.url}{path} does not answer with JSON: {shown!r}", "is it vLLM that listens there?"
            ) from None

    def _exchange(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError:
            raise ServerError(
                f"{self.url} did not answer within {timeout:g} s", "look into the server's log; it may be overloaded"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            raise ServerError(
                f"{self.url} cannot be reached: {reason}", "is it running, and is this its URL? `persona serve VERSION`"
            ) from None
        finally:
            connection.close()

    def healthy(self, timeout: float = 5.0) -> bool:
        """Whether `/health` answers 200 within a time in seconds."""
        try:
            self.ask("GET", "/health", timeout=timeout)
        except ServerError:
            return False
        return True

    def model(self) -> ServedModel:
        """The model that the server answers for.

        Raises:
            ServerError: also when it is no server of this kind.
        """
        found = self.ask("GET", "/v1/models")
        try:
            base = next(entry for entry in found["data"] if not entry.get("parent"))
            return ServedModel(str(base["id"]), str(base.get("root") or ""), int(base.get("max_model_len") or 0))
        except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
            raise ServerError(f"{self.url}/v1/models lists no model", "is it vLLM that listens there?") from None

    def answer(self, model: str, prompt: Sequence[int], tokens: int, *, timeout: float | None = None) -> Answer:
        """What the served model predicts along a prompt and a greedy reply; end-of-text does not end the reply.

        Args:
            model: the served model's name.
            prompt: token ids.
            tokens: of the reply, m.
            timeout: seconds, in place of the client's.

        Raises:
            ServerError: when the server fails, or does not tell log-probabilities.
        """
        question = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "prompt_logprobs": 1,  # the token that is there and the most likely one; keeps the prefix cache out, too
            "logprobs": 0,
            "return_token_ids": True,
        }
        found = self.ask("POST", "/v1/completions", question, timeout=timeout)
        try:
            choice = found["choices"][0]
            reply = tuple(int(token) for token in choice["token_ids"])
            places = choice["prompt_logprobs"][1:]
            told = [float(place[str(token)]["logprob"]) for place, token in zip(places, prompt[1:], strict=True)]
            told += [float(value) for value in choice["logprobs"]["token_logprobs"]]
            greedy = [int(max(place, key=lambda name: float(place[name]["logprob"]))) for place in places]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServerError(
                f"{self.url} does not tell the log-probabilities of a prompt", "is it vLLM 0.32 or later?"
            ) from None
        return Answer(reply, tuple(told), (*greedy, *reply))


def _detail(answer: bytes) -> tuple[str, str]:
    """What an error's body says, in one line, and the way out where it tells one."""
    text, hint = answer[: 10 * _SHOWN].decode(errors="replace"), ""
    try:
        data = json.loads(answer)
    except ValueError:
        data = None
    if isinstance(data, dict):
        error = data.get("error", data.get("detail", data.get("message", data)))
        if isinstance(error, dict):
            error = error.get("message", error)
        text = error if isinstance(error, str) else json.dumps(error)
        hint = str(data.get("hint") or "")
    return " ".join(text.split())[:_SHOWN] or "nothing", hint
