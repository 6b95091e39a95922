"""Server-sent events from bytes as they arrive: only what a stream of completions uses."""


class EventParser:
    """Collects `data:` lines into payloads; comments and other fields are skipped.

    Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html, "Parsing an event stream"
    (without a lone CR as the end of a line, which no server sends).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the events that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        payloads = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
            elif not text and self._data:
                payloads.append(b"\n".join(self._data))
                self._data = []
        return payloads
