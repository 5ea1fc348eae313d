"""One reply, from prompt to `Completed`: the composition behind `generate` and `stream`.

Puts the prompt into the memory, refocuses on it, lets the runtime loop decode, and waits until the
reply is durable. What happens per token is the loop's.
"""

from __future__ import annotations

from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from megacontext_sdk.contracts.runtime import DecodeRequest
from megacontext_sdk.messages import parse_content
from megacontext_sdk.results import Completed, FocusChanged, Reply, TextDelta, Usage
from megacontext_sdk.runtime.reply import ReplyText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megacontext_sdk.contracts.arrays import Ids
    from megacontext_sdk.messages.content import Content
    from megacontext_sdk.parts import Parts
    from megacontext_sdk.records import GenerateRequest
    from megacontext_sdk.results import FocusReport
    from megacontext_sdk.runtime.scribe import ReplyScribe

__all__ = ["Generation"]

_NO_IDS: Ids = np.zeros(0, dtype=np.int32)


class Generation:
    """One reply.

    Args:
        parts: the session's parts.
        content: the prompt, messages to answer, or None to continue.
        request: how to generate.
        stop: checked stop strings.
    """

    def __init__(
        self,
        parts: Parts,
        content: Content | None,
        request: GenerateRequest,
        stop: tuple[str, ...],
    ) -> None:
        self.request = request
        self._parts = parts
        self._content = content
        self._started = perf_counter()
        self._text = ReplyText(parts.state.tokenizer, stop)
        self._n_generated = 0
        self._is_stopped = False

    def items(
        self, report_focus: Callable[[], FocusReport]
    ) -> Iterator[TextDelta | FocusChanged | Completed]:
        """Append the prompt, refocus, decode, and complete."""
        with self._parts.tree.holding():
            yield from self._items(report_focus)
        self._parts.state.report_gists()

    def _items(
        self, report_focus: Callable[[], FocusReport]
    ) -> Iterator[TextDelta | FocusChanged | Completed]:
        header, n_prompt = self._take_prompt()
        n_reply = 0 if self.request.remember else self.request.max_new_tokens
        self._parts.loop.make_room(len(header) + n_reply)
        report = report_focus()
        scribe = self._parts.scribe.reply([citation.span for citation in report.revealed])
        try:
            yield FocusChanged(report)
            yield from self._decode(self._decode_request(header, scribe))
        finally:
            scribe.wait()
        yield Completed(self._reply(report, scribe, n_prompt))

    def _decode(self, request: DecodeRequest) -> Iterator[TextDelta]:
        n_emitted = 0
        with closing(self._parts.loop.decode(request)) as tokens:
            for token in tokens:
                self._n_generated += 1
                self._is_stopped = token.is_eos or self._text.stopped
                if token.text:
                    n_emitted += len(token.text)
                    yield TextDelta(token.text)
        rest = self._text.text[n_emitted:]
        if rest:
            yield TextDelta(rest)

    def _take_prompt(self) -> tuple[Ids, int]:
        """Put the prompt into the memory (or in front of the reply), and refocus on it."""
        parts, chat = self._parts, self._parts.scribe.chat
        parts.scribe.repair_index()
        header = chat.reply_header_ids()
        vocab_size = parts.state.adapter.info.vocab_size
        drafts = []
        if self._content is not None:
            drafts = parse_content(self._content, vocab_size=vocab_size)
        if not drafts:
            opening = _NO_IDS if parts.tree.n_tokens else chat.opening_ids
            self._refocus(_NO_IDS, "", None)
            return np.concatenate([opening, header]).astype(np.int32), 0
        text = drafts[-1].text or ""
        if self.request.remember:
            start = parts.tree.n_tokens
            written = parts.scribe.write(drafts, open_ended=True)
            parts.loop.ingest()
            self._refocus(written.token_ids, text, start)
            return header, len(written.token_ids)
        ids = np.concatenate(parts.scribe.render(drafts, open_ended=True))
        self._refocus(ids, text, None)
        return np.concatenate([ids, header]).astype(np.int32), len(ids)

    def _refocus(self, ids: Ids, text: str, start: int | None) -> None:
        self._parts.loop.refocus(
            ids,
            text,
            turn_start=start,
            max_iterations=self._parts.state.config.focus.max_iterations,
            trigger="turn",
        )

    def _decode_request(self, header: Ids, scribe: ReplyScribe) -> DecodeRequest:
        return DecodeRequest(
            header_ids=header,
            footer_ids=self._parts.scribe.chat.reply_footer_ids(),
            max_new_tokens=self.request.max_new_tokens,
            sampling=self.request.sampling,
            reply=self._text,
            commit=scribe.commit,
            remember=self.request.remember,
        )

    def _reply(self, report: FocusReport, scribe: ReplyScribe, n_prompt: int) -> Reply:
        return Reply(
            text=self._text.text,
            message_id=scribe.message_id,
            usage=Usage(
                prompt_tokens=n_prompt,
                generated_tokens=self._n_generated,
                window_rows=self._parts.state.pager.n_live,
            ),
            finish_reason="stop" if self._is_stopped else "length",
            focus=report,
            citations=report.revealed,
            seconds=perf_counter() - self._started,
        )
